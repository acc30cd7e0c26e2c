"""Recipes of the package by name; they are installed with it, beside the Accelerate configurations and the embedded images."""

import difflib
from pathlib import Path
from typing import Literal

from hssl_hf.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
TRAINING = next(folder for folder in (PACKAGE / "training", PACKAGE.parents[1] / "training") if folder.is_dir())
Protocol = Literal["knn", "linear", "label_free"]  # of evaluations
RECIPES, EVALUATIONS = TRAINING / "recipes", TRAINING / "evaluations"  # of pre-training, and of evaluations


def recipes(folder: Path = RECIPES) -> dict[str, Path]:
    """Recipes of the package by name."""
    return {path.stem: path for path in sorted(folder.rglob("*.yaml"))}


def find_recipe(name: str | Path, folder: Path = RECIPES) -> Path:
    """The file of a recipe, given by its path or by the name of a recipe of the package.

    Args:
        folder: of the recipes of the package.
    Raises:
        UserError: if there is neither.
    """
    path, known = Path(name), recipes(folder)
    if path.is_file():
        return path
    if path.parent == Path() and path.name.removesuffix(".yaml") in known:
        return known[path.name.removesuffix(".yaml")]
    near = difflib.get_close_matches(path.stem, known, n=3)
    raise UserError(
        f"there is no recipe {str(name)!r}: expected a file, or a name that `hssl-hf recipes` lists."
        + (f" Did you mean {', '.join(near)}?" if near else "")
    )


def recipe_notes(path: Path) -> list[str]:
    """What a recipe is for, with its table, the paper's number and its cost: the comments above its first key."""
    lines = path.read_text().splitlines()
    comments = lines[: next(index for index, line in enumerate(lines) if not line.startswith("#"))]
    commands = ("accelerate launch", "hssl-hf evaluate")
    return [line.removeprefix("#").strip() for line in comments if not any(command in line for command in commands)]


def recipe_differences() -> list[tuple[str, str]]:
    """Where recipes differ from the papers: their names, and their notes from `Differs:` on."""
    notes = {
        name: " ".join(recipe_notes(path)).partition("Differs: ")[2]
        for name, path in {**recipes(), **recipes(EVALUATIONS)}.items()
    }
    return [(name, text) for name, text in notes.items() if text]
