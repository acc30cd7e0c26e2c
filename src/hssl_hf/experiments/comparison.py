"""A comparison of evaluated models: table and figures from their records and predictions, without computing any anew."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hssl_hf.data.files import write_below
from hssl_hf.errors import UserError, writing
from hssl_hf.evaluation.classification import bootstrap_interval
from hssl_hf.evaluation.predictions import ENDING, Predictions
from hssl_hf.evaluation.records import PIXELS, UNTRAINED, read_records
from hssl_hf.publish.markdown import plain
from hssl_hf.runs.run_directory import RESULTS
from hssl_hf.visualization import comparison as figures

BASELINES = (UNTRAINED, PIXELS)


def compare(evaluations: Sequence[Path | str], output: Path | str) -> list[str]:
    """Write `table.md` and figures of models × protocols.

    Args:
        evaluations: folders of `hssl-hf evaluate --output`, or files of records, of which there are no predictions.
        output: folder of the comparison.
    Returns:
        lines for the screen: the table, and the paths of what was written.
    Raises:
        UserError: if an evaluation has no records, or they are of different images.
    """
    paths = [Path(path) for path in evaluations]
    records = [record | {"subject": _named(record["subject"], path, paths)} for path in paths for record in _records_of(path)]
    accuracies = [record for record in records if record["metric"].endswith("_top1")]
    if not accuracies:
        raise UserError(f"expected records of top-1 accuracies in {', '.join(map(str, evaluations))}, got none")
    table, output = _table(accuracies), Path(output)
    rows = [(protocol_of(r), r["subject"], r["value"], _pair(r.get("interval"))) for r in accuracies]
    written = {"bars.png": figures.accuracy_bars(rows)}
    for protocol, models in _by_protocol(paths).items():
        name = "".join(character if character.isalnum() else "-" for character in protocol)
        written[f"{name}-classes.png"] = figures.class_accuracies(models)
        written[f"{name}-confusions.png"] = figures.confusion_bars(models)
        for number, model in enumerate(models, 1):
            written[f"{name}-mistakes-{number}.png"] = figures.mistake_images(model)
        table += _paired(protocol, models)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    for name, content in {"table.md": "\n".join([*table, ""]), **written}.items():
        write_below(output, name, content)
    return [*table, "", *(str(output / name) for name in ("table.md", *written))]


def protocol_of(record: dict) -> str:
    """The protocol of a record, with the settings in which its figures differ."""
    protocol, settings = record["metric"].removesuffix("_top1"), record["settings"]
    details = [f"k={settings['num_neighbors']}"] if "num_neighbors" in settings else []
    details += [str(settings["features"])] if settings.get("features", "cls") != "cls" else []
    details += [f"{settings['blocks']} blocks"] if settings.get("blocks", 1) != 1 else []
    return " ".join([protocol, *details])


def _records_of(path: Path) -> list[dict]:
    file = path / RESULTS if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path} is not an evaluation: expected a folder of `hssl-hf evaluate --output`, or a file of records")
    latest = {(r["metric"], protocol_of(r), r["subject"], r["dataset"], r["split"]): r for r in read_records(file)}
    return list(latest.values())


def _pair(interval: list[float] | None) -> tuple[float, float] | None:
    return None if interval is None else tuple(interval)


def _table(records: list[dict]) -> list[str]:
    """Models × protocols, in the order of the records."""
    images = {(r["dataset"], r["split"], r["n"]) for r in records}
    if len(images) > 1:
        shown = "; ".join(f"{n} of {dataset} ({split})" for dataset, split, n in sorted(images))
        raise UserError(f"the records are of different images, so that they cannot be compared: {shown}")
    ((dataset, split, n),) = images
    protocols, subjects = (list(dict.fromkeys(map(key, records))) for key in (protocol_of, lambda r: r["subject"]))
    cells = {(r["subject"], protocol_of(r)): r for r in records}
    lines = [f"Top-1 in percent on {n} images of {plain(dataset)} ({plain(split)}), with 95 % intervals over the images.", ""]
    lines += [f"| model | {' | '.join(protocols)} |", "|---" * (1 + len(protocols)) + "|"]
    for subject in subjects:
        row = [_cell(cells.get((subject, protocol))) for protocol in protocols]
        lines.append(f"| {plain(subject)} | {' | '.join(row)} |")
    return lines


def _cell(record: dict | None) -> str:
    if record is None:
        return "–"
    interval = record.get("interval")
    return f"{record['value']:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def _named(subject: str, path: Path, paths: Sequence[Path]) -> str:
    """A baseline of one of several evaluations by the name of its folder too."""
    return f"{subject} ({path.stem})" if subject in BASELINES and len(paths) > 1 else subject


def _by_protocol(paths: Sequence[Path]) -> dict[str, list[Predictions]]:
    """Predictions of all models by protocol."""
    by_protocol: dict[str, list[Predictions]] = {}
    for folder in paths:
        for file in sorted(folder.glob(f"*{ENDING}")) if folder.is_dir() else ():
            predictions = Predictions.load(file)
            predictions = replace(predictions, subject=_named(predictions.subject, folder, paths))
            by_protocol.setdefault(predictions.protocol, []).append(predictions)
    return by_protocol


def _paired(protocol: str, models: list[Predictions]) -> list[str]:
    """Differences of the models from the first, image by image."""
    first, *others = models
    same = [m for m in others if m.positions.equal(first.positions) and m.result.labels.equal(first.result.labels)]
    lines = [""] if same else []
    for model in same:
        difference = 100.0 * (model.result.correct().numpy().astype(int) - first.result.correct().numpy().astype(int))
        low, high = bootstrap_interval(np.asarray(difference))
        names = f"{plain(model.subject)} minus {plain(first.subject)}"
        lines.append(f"- {protocol}: {names}, on the same images: {difference.mean():+.2f} [{low:+.2f}, {high:+.2f}]")
    return lines
