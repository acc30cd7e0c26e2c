"""What users read uses the field's words: help texts, error messages, log lines, cards and guides."""

import ast
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SOURCE = ROOT / "src" / "hssl_hf"
REPLACEMENTS = {  # pattern -> what to write instead
    r"stands? still|standing still": "frozen",
    r"puts? aside": "quarantine",
    r"work(s|ed)? (it )?out": "compute, recompute",
    r"to go on|go(es)? on with": "continue (training)",
    r"fore(see|saw|seen|tell|told|tells)": "estimate",
    r"no ?body|any ?body|some ?body": "passive voice, or 'user'",
    r"says?|said|tells?|told|asks?|asked|answers?|answered": "return, report, output, predict, expect",
    r"arms?": "variant",
    r"colour\w*|grey|neighbour\w*|centre\w*|normalis\w*|initialis\w*|optimis\w*|licence|labelled": "American spelling",
    r"doctor|ill": "monitor, collapsed",
    r"sittings?": "run",
    r"whole": "full, unsharded, complete",
    r"lies|lie": "is stored, is at",
    r"shares? of": "fraction of",
    r"readers?": "worker",
    r"pictures?(?!/)": "image, figure",
    r"mirrored": "flipped",
}
PATTERNS = {re.compile(rf"(?<![\w./`-])({pattern})(?![\w/`-])", re.IGNORECASE): text for pattern, text in REPLACEMENTS.items()}


def private_words(text: str) -> list[str]:
    """Words that have a better one, each with it and the words around."""
    return [
        f"{match.group()!r} -> {instead} (in {text[max(0, match.start() - 30) : match.end() + 20]!r})"
        for pattern, instead in PATTERNS.items()
        for match in pattern.finditer(text)
    ]


def strings_in(node: ast.AST) -> str:
    return " ".join(n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str))


def messages(tree: ast.AST):
    """Texts of errors, log lines and alarms."""
    for node in ast.walk(tree):
        calls = isinstance(node, ast.Call) and re.fullmatch(r"logger\.\w+|Alarm|\w*Error|unknown", ast.unparse(node.func))
        if calls or (isinstance(node, ast.Raise) and node.exc is not None):
            yield strings_in(node)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_errors_and_log_lines(path):
    assert not [word for text in messages(ast.parse(path.read_text())) for word in private_words(text)]


GUIDES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "model_cards/template.md"]
GUIDES += [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "model_cards" / "rendered").glob("*.md"))]


@pytest.mark.parametrize("name", GUIDES)
def test_guides_and_cards(name):
    assert not private_words((ROOT / name).read_text())


def test_card_text():
    assert not private_words(strings_in(ast.parse((SOURCE / "publish" / "card_text.py").read_text())))


def test_help():
    from hssl_hf.cli.commands import COMMANDS

    code = "from hssl_hf.cli.main import main; import sys; [main([*name.split(), '--help']) for name in sys.argv[1:]]"
    done = subprocess.run([sys.executable, "-c", code, "", *COMMANDS], capture_output=True, text=True, check=True)
    assert all(f"hssl-hf {name}" in done.stdout or f"-c {name}" in done.stdout for name in COMMANDS)
    assert not private_words(done.stdout)


def test_private_words_are_found():
    assert (
        private_words("the head says what the base says") and private_words("it stands still") and not private_words("hf_ill")
    )
