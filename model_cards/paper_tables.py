"""The papers' tables (tests/papers) as rows with a recipe or a reason each, rendered for a page and for headers of recipes.

A figure is measured with an evaluation; those that this package does not have yet are what a row waits for.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

import yaml

from hssl_hf.config.evaluation_recipe import load_evaluation_recipe
from hssl_hf.config.recipe_files import EVALUATIONS as EVALUATION_RECIPES
from hssl_hf.config.recipe_files import recipes

ROOT = Path(__file__).parents[1]
TABLES = sorted((ROOT / "tests" / "papers").glob("*.yaml"))
SERVER = "server"  # in the place of an evaluation: a split that only a server can score
EVALUATIONS = {  # where a figure is found; None for evaluations that rows wait for
    "k-NN": "`hssl-hf evaluate RUN/export knn knn_imagenet`, with the run's `data.classes`",
    "discrepancy": "`python training/study.py STUDY`, of a study of these recipes",
    "cost": "the run's `manifest.json`",
    "solved samples": "`python training/study.py STUDY`, of a study of these recipes",
    "linear": "`hssl-hf evaluate RUN/export linear RECIPE`, with the recipe of the method in training/evaluations",
    "fine-tuning": None,
    "1 % of the labels": None,
    "transfer": None,
    "semi-supervised classification": None,
    "semantic segmentation": None,
    "segmentation on ImageNet-S": None,
    "semi-supervised segmentation": None,
    "unsupervised segmentation": None,
    "detection": None,
    "robustness": None,
}


NOTES = {  # on what is printed
    ("HSSL", "8"): "Differs: the titles of the two columns are taken as exchanged, since iBOT's own 51.2 is of boxes."
}


@dataclass(frozen=True)
class Row:
    """One row of a table; of `recipe`, `evaluation`, `method` and `waits` exactly one is set.

    Args:
        paper, table: where it is printed.
        settings: what is printed of it, by the names of the columns; those of its caption and section included.
        numbers: by the names of their columns; without those that the row lacks.
        measures: the evaluation and the metric of every column of numbers.
        recipe: the name of the recipe that makes it.
        evaluation: the name of the recipe of an evaluation whose settings it prints.
        method: whose figures these are, where no recipe makes them.
        waits: the evaluation that it describes and this package lacks.
        gains: printed in brackets beside the numbers.
        minus: the method whose row has been subtracted.
    """

    paper: str
    table: str
    settings: dict
    numbers: dict[str, float]
    measures: dict[str, tuple[str, str]]
    recipe: str | None = None
    evaluation: str | None = None
    method: str | None = None
    waits: str | None = None
    gains: dict[str, float] | None = None
    minus: str | None = None


@cache
def read_rows() -> tuple[Row, ...]:
    """All rows of all tables, in the papers' order."""
    rows = []
    for path in TABLES:
        content = yaml.safe_load(path.read_text())
        for name, table in content["tables"].items():
            for row in table["rows"]:
                rows.append(_read_row(content["paper"], str(name), table, dict(row)))
    return tuple(rows)


def _read_row(paper: str, name: str, table: dict, row: dict) -> Row:
    columns, measures = table.get("settings", []), {key: tuple(value) for key, value in table.get("numbers", {}).items()}
    cells = row.pop("cells", [])
    settings = row.pop("settings", {}) | dict(zip(columns, cells, strict=False))
    values = dict(zip(measures, cells[len(columns) :], strict=True))
    if row.get("gains"):
        row["gains"] = dict(zip(measures, row["gains"], strict=True))
    settings = {key: value for key, value in {**table.get("shared", {}), **settings}.items() if value is not None}
    return Row(paper, name, settings, {key: value for key, value in values.items() if value is not None}, measures, **row)


def paper_lines(recipe: str) -> list[str]:
    """Lines for the header of a recipe: one per paper, with its tables and numbers; none for a recipe of no row."""
    rows = [row for row in read_rows() if row.recipe == recipe]
    return [_paper_line(paper, list(of_paper)) for paper, of_paper in groupby(rows, key=lambda row: row.paper)]


def _paper_line(paper: str, rows: list[Row]) -> str:
    figures = defaultdict(dict)
    for row in rows:
        for column, value in row.numbers.items():
            evaluation, metric = row.measures[column]
            if row.minus is None:
                figures["on a server" if evaluation == SERVER else evaluation][metric] = value
    tables = list(dict.fromkeys(row.table for row in rows))
    title = f"{paper}, Table {tables[0]}" if len(tables) == 1 else f"{paper}, Tables {', '.join(tables[:-1])} and {tables[-1]}"
    groups = [
        f"{name} {', '.join(f'{metric} {value}' for metric, value in values.items())}" for name, values in figures.items()
    ]
    return f"{title}: {'; '.join(groups)}." if groups else f"{title}."


def render() -> list[str]:
    """All tables, for the page."""
    lines = []
    for (paper, table), rows in groupby(read_rows(), key=lambda row: (row.paper, row.table)):
        note = NOTES.get((paper, table))
        lines += ["", f"## {paper}, Table {table}", "", *([note, ""] if note else []), *_table(list(rows))]
    return [*lines, ""]


def _table(rows: list[Row]) -> Iterable[str]:
    common = {key: value for key, value in rows[0].settings.items() if all(row.settings.get(key) == value for row in rows)}
    settings = list(dict.fromkeys(key for row in rows for key in row.settings if key not in common))
    measures = rows[0].measures
    if stated := ", ".join(f"{key} {_cell(value)}" for key, value in common.items()):
        yield from (f"{stated}.", "")
    if measures:
        yield from (_legend(measures), "")
    header = [*settings, *measures, "recipe", "command"]
    yield f"| {' | '.join(header)} |"
    yield "|" + "---|" * len(header)
    for row in rows:
        numbers = [_number(row, column) for column in measures]
        yield f"| {' | '.join([*(_cell(row.settings.get(key)) for key in settings), *numbers, *_source(row)])} |"


def _legend(measures: dict[str, tuple[str, str]]) -> str:
    parts = []
    for column, (evaluation, metric) in measures.items():
        where = EVALUATIONS.get(evaluation, "which only a server can score") or "waits for this evaluation"
        parts.append(f"{column}: {metric if evaluation == SERVER else f'{evaluation} {metric}'} ({where})")
    return "; ".join(parts) + "."


def _source(row: Row) -> tuple[str, str]:
    if row.recipe:
        path = recipes()[row.recipe].relative_to(ROOT)
        name = f"[{row.recipe}](../{path})" + (f" minus {row.minus}" if row.minus else "")
        return name, f"`hssl-hf pretrain {row.recipe}`"
    if row.evaluation:
        path = recipes(EVALUATION_RECIPES)[row.evaluation]
        protocol = load_evaluation_recipe(None, path).protocol
        link = f"[{row.evaluation}](../{path.relative_to(ROOT)})"
        return link, f"`hssl-hf evaluate MODEL {protocol} {row.evaluation}`"
    return (f"figures of {row.method}" if row.method else f"waits for {row.waits}"), "–"


def _number(row: Row, column: str) -> str:
    if column not in row.numbers:
        return "–"
    sign = "+" if row.minus else ""
    return f"{sign}{row.numbers[column]}" + (f" (+{row.gains[column]})" if row.gains else "")


def _cell(value) -> str:
    if isinstance(value, bool):
        return "✓" if value else "✗"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "–" if value is None else str(value)
