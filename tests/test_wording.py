"""Users and readers meet the field's words: in help texts, messages, cards, guides, comments, docstrings and names."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

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


CODE = sorted(path for folder in ("src", "training", "model_cards", "tests") for path in (ROOT / folder).rglob("*.py"))
VAGUE_NAMES = {
    "found",
    "place",
    "places",
    "more",
    "told",
    "whole",
    "story",
    "arm",
    "arms",
    "picture",
    "pictures",
    "somebody",
    "lies",
}


def prose(text: str) -> str:
    """Comments and docstrings of a file."""
    comments = [
        token.string for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.COMMENT
    ]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, documented)]
    return "\n".join([*comments, *docstrings])


def names(tree: ast.AST) -> set[str]:
    """Names that a file gives: variables, arguments, functions, classes, attributes of `self`."""
    given = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    given |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    given |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    return given | {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_comments_docstrings_and_names(path):
    if path != Path(__file__):
        text = path.read_text()
        given = names(ast.parse(text))
        spaced = " ".join(name.replace("_", " ") for name in given if name.startswith("test_"))
        assert not private_words(prose(text)) and not private_words(spaced) and not given & VAGUE_NAMES


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
