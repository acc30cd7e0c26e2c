"""Differences between the code and the papers: every `Differs:` of a docstring, with its file and class or function."""

import ast
import re
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def paper_differences(described_in: Iterable[str] | None = None) -> list[tuple[str, str, str]]:
    """All `Differs:` entries as (file, name, difference).

    Args:
        described_in: files of the package, without suffix (`PreTrainingConfig.described_in`); None for all.
    """
    files = sorted(PACKAGE.rglob("*.py")) if described_in is None else [PACKAGE / f"{name}.py" for name in described_in]
    differences = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                texts = re.findall(r"Differs: (.*?)(?=\n\S|\n\n|\Z)", ast.get_docstring(node) or "", re.DOTALL)
                differences += [(path.relative_to(PACKAGE).as_posix(), node.name, " ".join(text.split())) for text in texts]
    return differences
