"""Render the cards of the models that this project has trained: facts/*.yaml and results/*.jsonl -> rendered/*.md.

    python model_cards/render.py [--check]

With --check nothing is written; a card that would change is an error.
"""

import difflib
import json
import sys
from pathlib import Path

import yaml

from hssl_hf.publish.model_card import render

HERE = Path(__file__).parent


def cards() -> dict[Path, str]:
    """Content of every card, by its file."""
    contents = {}
    for path in sorted((HERE / "facts").glob("*.yaml")):
        facts = yaml.safe_load(path.read_text())
        records = [json.loads(line) for line in (HERE / "results" / f"{path.stem}.jsonl").read_text().splitlines()]
        own = [record for record in records if record["seed"] == facts["manifest"]["seed"]]
        contents[HERE / "rendered" / f"{path.stem}.md"] = render(facts, own, repository=f"user/{path.stem}")
    return contents


def main() -> int:
    check, changed = "--check" in sys.argv[1:], 0
    for path, content in cards().items():
        before = path.read_text() if path.is_file() else ""
        changed += before != content
        if check:
            sys.stdout.writelines(
                difflib.unified_diff(before.splitlines(True), content.splitlines(True), str(path), "rendered")
            )
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
    return int(check and changed > 0)


if __name__ == "__main__":
    sys.exit(main())
