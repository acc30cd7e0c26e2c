"""The commands as Python functions, which run the code of the command line in this process."""

import json
from collections.abc import Mapping
from pathlib import Path

from hssl_hf.cli.programs import pretrain_with, read_recipe, search_with
from hssl_hf.config.recipe_files import EVALUATIONS, find_recipe
from hssl_hf.errors import UserError, shown
from hssl_hf.evaluation.records import Record
from hssl_hf.experiments import frozen_evaluation, head_search
from hssl_hf.runs.run_directory import RunDirectory


def pretrain(
    recipe: str | Path = "quickstart",
    data: str | Path | None = None,
    output_dir: str | Path | None = None,
    overrides: Mapping[str, object] | None = None,
    take_over: bool = False,
) -> Path:
    """Pre-train a backbone.

    Args:
        recipe: name of a recipe of the package (`hssl-hf recipes` lists them), or a file.
        data: folder, Hub dataset or URL of the images to train on instead of the recipe's. The recipe's probe, which classifies
            other images, is left out then, unless `overrides` sets `probe.path`.
        output_dir: folder of the run; None for the recipe's own, or runs/<name of the recipe>.
        overrides: values that replace the recipe's, by their keys: {"optim.epochs": 5}.
        take_over: claim the folder from a process that hangs or is gone.
    Returns:
        folder of the run; its `export` holds the backbone.
    Raises:
        UserError: for what the command line refuses.
        SystemExit: with code 75 (130 for Ctrl-C), after a checkpoint if training has begun, if a signal stops it.
    """
    code, folder = pretrain_with(*read_recipe(_settings(recipe, data, output_dir, overrides)), take_over=take_over)
    _require_completion(code)
    return folder


def search_heads(
    recipe: str | Path = "quickstart",
    data: str | Path | None = None,
    output_dir: str | Path | None = None,
    overrides: Mapping[str, object] | None = None,
    candidates: list[str] | None = None,
    data_fraction: float = 0.1,
    depth: int = head_search.DEPTH,
) -> list[head_search.Candidate]:
    """Search the auxiliary head for a recipe, without labels.

    Args:
        recipe, data, output_dir, overrides: as in `pretrain`.
        candidates: families to compare; None for all.
        data_fraction: of the images, above 0 and up to 1.
        depth: blocks of every candidate.
    Returns:
        the candidates, the most promising one first.
    """
    loaded, name = read_recipe(_settings(recipe, data, output_dir, overrides))
    code, folder = search_with(loaded, name, candidates, data_fraction, depth)
    _require_completion(code)
    return head_search.rank(folder)


def evaluate(
    export: str | Path,
    protocol: str = "knn",
    data: str | Path | None = None,
    overrides: Mapping[str, object] | None = None,
    results: str | Path | None = None,
    recipe: str | Path | None = None,
    output: str | Path | None = None,
    baselines: bool | None = None,
) -> list[Record]:
    """Evaluate a frozen backbone on labeled images.

    Args:
        export: exported folder or Hub repository.
        protocol: "knn", "linear" or "label_free".
        data: folder, Hub dataset or URL of the images.
        overrides: further values, as on the command line: {"data.test_split": "validation", "linear.epochs": 50}.
        results: file of JSON lines to which the records are added.
        recipe: name or file of an evaluation's recipe.
        output: folder for records and predictions.
        baselines: evaluate the untrained backbone and raw pixels too; None for the default of the command line.
    Returns:
        the records, each with metric, value, interval, n and settings: top1 and top5 in percent.
    """
    values = ({} if data is None else {"data.path": str(data)}) | dict(overrides or {})
    results = None if results is None else Path(results)
    path = None if recipe is None else find_recipe(recipe, EVALUATIONS)
    return frozen_evaluation.evaluate(str(export), protocol, path, _as_settings(values), results, output, baselines=baselines)


def export(
    run: str | Path,
    folder: str | Path | None = None,
    kind: str = "main",
    network: str | None = None,
    license: str | None = None,
    onnx: bool = False,
) -> Path:
    """Write the base of a run as a stock model; arguments as of `hssl-hf export`. Returns the folder."""
    directory = RunDirectory.open(Path(run))
    return directory.export(Path(folder or directory.folder / "export"), kind, network, license, onnx)


def _settings(recipe, data, output_dir, overrides) -> list[str]:
    values = {} if data is None else {"data.path": str(data), "probe.path": None}
    values |= {} if output_dir is None else {"run.output_dir": str(output_dir)}
    return [str(recipe), *_as_settings(values | dict(overrides or {}))]


def _as_settings(values: Mapping[str, object]) -> list[str]:
    return [f"{key}={_as_json(key, value)}" for key, value in values.items()]


def _as_json(key: str, value: object) -> str:
    """A value in JSON, which is YAML too; paths, and scalars and arrays of numpy and torch, as plain values."""

    def plain(value):
        return str(value) if isinstance(value, Path) else value.tolist()

    try:
        return json.dumps(value, ensure_ascii=False, default=plain)
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{key}: expected texts, numbers, booleans, None, and lists and dictionaries of them, got {shown(value)}"
        ) from error


def _require_completion(code: int) -> None:
    if code:
        raise SystemExit(code)
