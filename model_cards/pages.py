"""Fill the generated parts of README.md and of the pages beside this file.

    python -m model_cards.pages

Figures come from the records in model_cards/results, those of the papers from tests/papers, differences from docstrings and
recipes; no number is entered by hand.
"""

import re
import statistics
from collections import defaultdict
from pathlib import Path

from hssl_hf.config.recipe_files import EVALUATIONS, recipe_differences, recipes
from hssl_hf.evaluation.records import read_records
from hssl_hf.experiments import study_report
from hssl_hf.experiments.study import Study
from hssl_hf.experiments.study_report import Findings
from hssl_hf.publish.paper_differences import paper_differences
from model_cards import paper_tables

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(ROOT / "model_cards" / f"{name}.md" for name in ("results", "differences", "paper_tables"))]
HEADLINE = "cifar10"  # study whose summary opens the README


def render(page: str) -> str:
    """A page with its generated parts rendered again."""
    parts = {"headline": headline, "results": results, "study": study, "differences": difference_lines}
    parts["paper tables"] = paper_tables.render
    for name, lines in parts.items():
        if f"<!-- {name} -->" in page:
            block = f"<!-- {name} -->\n" + "\n".join(lines()) + f"\n<!-- /{name} -->"
            page = re.sub(rf"<!-- {name} -->.*<!-- /{name} -->", lambda _, block=block: block, page, flags=re.DOTALL)
    return page


def headline() -> list[str]:
    return ["", *study_report.summary(studies()[HEADLINE]), ""]


def results() -> list[str]:
    """One table per file of records and metric: every subject with its mean, its seeds, and their standard deviation."""
    lines = []
    for path in sorted((ROOT / "model_cards" / "results").glob("*.jsonl")):
        records = read_records(path)
        if path.stem.startswith("study_"):
            continue
        for metric in sorted({record["metric"] for record in records if record["metric"].endswith("top1")}):
            lines += table(path.stem.replace("_", " "), [record for record in records if record["metric"] == metric])
    return [*lines, ""]


def study() -> list[str]:
    """Tables and figure of every study that has records."""
    lines = []
    for name, findings in studies().items():
        lines += ["", *study_report.table(findings), "", *study_report.rank_table(findings), ""]
        lines.append(f"![gains and discrepancies](rendered/study_{name}.png)")
    return [*lines, ""]


def draw_studies() -> None:
    for name, findings in studies().items():
        study_report.draw(findings, ROOT / "model_cards" / "rendered" / f"study_{name}.png")


def studies() -> dict[str, Findings]:
    """Findings by the name of a study, for the studies that have records."""
    paths = sorted((ROOT / "training" / "studies").glob("*.yaml"))
    records = {path: read_records(ROOT / "model_cards" / "results" / f"study_{path.stem}.jsonl") for path in paths}
    return {path.stem: Findings(Study.read(path), records[path]) for path in paths if records[path]}


def table(title: str, records: list[dict]) -> list[str]:
    """Records of one metric; settings that differ between them (a chosen learning rate) are left out of the caption."""
    first, by_subject = records[0], defaultdict(dict)
    for record in records:
        by_subject[record["subject"]][record["seed"]] = record["value"]
    shared = {k: v for k, v in first["settings"].items() if v and all(r["settings"].get(k) == v for r in records)}
    settings = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in shared.items())
    data = f"{first['dataset']} ({first['split']}, {first['n']} images)"
    lines = ["", f"**{title}**: {first['metric']} in {first['unit']} on {data}; {settings}."]
    lines += ["", "| | mean | seeds | standard deviation |", "|---|---|---|---|"]
    for subject, values in by_subject.items():
        spread = f"{statistics.stdev(values.values()):.2f}" if len(values) > 1 else "–"
        seeds = ", ".join(f"{values[seed]:.2f}" for seed in sorted(values))
        lines.append(f"| {subject} | {statistics.mean(values.values()):.2f} | {seeds} | {spread} |")
    return lines


def difference_lines() -> list[str]:
    lines = ["", "| where | difference |", "|---|---|"]
    lines += [f"| [{name}](../src/hssl_hf/{file}) | {text} |" for file, name, text in paper_differences()]
    paths = {**recipes(), **recipes(EVALUATIONS)}
    lines += [f"| [{name}](../{paths[name].relative_to(ROOT)}) | {text} |" for name, text in recipe_differences()]
    return [*lines, ""]


if __name__ == "__main__":
    for target in PAGES:
        target.write_text(render(target.read_text()))
    draw_studies()
