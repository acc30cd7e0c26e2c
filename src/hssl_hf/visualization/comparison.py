"""Figures that compare models: accuracies with intervals, classes, confusions, mistakes."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hssl_hf.evaluation.predictions import Predictions
from hssl_hf.visualization.curves import png_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASSES, PAIRS, COLUMNS = 30, 12, 8  # classes with the largest differences, confusions of a model, mistakes in a row
LONGEST = 28  # characters of a name


def accuracy_bars(rows: Sequence[tuple[str, str, float, tuple[float, float] | None]]) -> bytes:
    """Bars with intervals, a group per protocol and a color per model.

    Args:
        rows: protocol, model, accuracy in percent, and its interval.
    Returns:
        a PNG file.
    """
    protocols, models = (list(dict.fromkeys(row[index] for row in rows)) for index in (0, 1))
    figure = _figure(1.8 + 1.1 * len(protocols) * max(1, 0.28 * len(models)), 3.4)
    axes, width = figure.subplots(), 0.8 / len(models)
    for protocol, model, value, interval in rows:
        position = protocols.index(protocol) - 0.4 + width * (models.index(model) + 0.5)
        errors = None if interval is None else [[value - interval[0]], [interval[1] - value]]
        axes.bar(position, value, width, yerr=errors, capsize=2, color=f"C{models.index(model)}", label=model)
        text = {"fontsize": 6, "ha": "center", "va": "bottom", "xytext": (0, 2), "textcoords": "offset points"}
        axes.annotate(f"{value:.1f}", (position, value if interval is None else interval[1]), **text)
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    _legend(figure, handles.values(), handles)
    axes.set_xticks(range(len(protocols)), [_short(name) for name in protocols], fontsize=8)
    axes.set_ylabel("top-1 (%)")
    axes.margins(y=0.15)
    return png_of(figure)


def class_accuracies(models: Sequence[Predictions]) -> bytes:
    """A dot per model for the classes in which models differ most, or, of one model, for the worst classes."""
    accuracies = {model.subject: model.accuracies() for model in models}
    names = [name for name in next(iter(accuracies.values())) if all(name in of_model for of_model in accuracies.values())]
    values = np.array([[of_model[name] for of_model in accuracies.values()] for name in names])
    spread = values.max(1) - values.min(1) if len(models) > 1 else -values[:, 0]
    shown = sorted(np.argsort(-spread, kind="stable")[:CLASSES], key=lambda index: values[index].mean())
    figure = _figure(5.6, 1.2 + 0.22 * len(shown))
    axes = figure.subplots()
    for column, subject in enumerate(accuracies):
        axes.plot(values[shown, column], range(len(shown)), "o", markersize=4, label=subject)
    axes.hlines(range(len(shown)), values[shown].min(1), values[shown].max(1), color="0.7", linewidth=1, zorder=0)
    axes.set_yticks(range(len(shown)), [_short(names[index]) for index in shown], fontsize=7)
    axes.set_xlabel(f"top-1 (%) of {len(shown)} of {len(names)} classes")
    axes.grid(axis="x", alpha=0.25)
    _legend(figure, *axes.get_legend_handles_labels())
    return png_of(figure)


def confusion_bars(models: Sequence[Predictions]) -> bytes:
    """The most frequent mistakes of every model."""
    figure = _figure(4.4 * len(models), 3.6)
    for axes, model in zip(np.atleast_1d(figure.subplots(1, len(models))), models, strict=True):
        confusions = model.confusions(PAIRS)[::-1]
        axes.barh(range(len(confusions)), [count for _, _, count in confusions], color="C3")
        labels = [f"{_short(true, 14)} → {_short(predicted, 14)}" for true, predicted, _ in confusions]
        axes.set_yticks(range(len(confusions)), labels, fontsize=7)
        axes.set_xlabel("images")
        axes.set_title(_short(model.subject), fontsize=8)
    return png_of(figure)


def mistake_images(model: Predictions) -> bytes:
    """The images that a model classified wrongly with the greatest confidence, with true and predicted class."""
    count = max(1, len(model.mistakes))
    rows, columns = -(-count // COLUMNS), min(COLUMNS, count)
    figure = _figure(1.4 * columns, 1.9 * rows + 0.3)
    figure.suptitle(_short(f"most certain mistakes of {model.subject}", 80), fontsize=8)
    grid = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).flatten()
    for axes in grid:
        axes.set_axis_off()
    for axes, image, number in zip(grid, model.mistakes, model.mistaken.tolist(), strict=False):
        axes.imshow(image.permute(1, 2, 0).numpy())
        true, predicted = (int(value) for value in (model.result.labels[number], model.result.ranking[number, 0]))
        confidence = 100 * model.result.confidence[number].item()
        title = f"{_short(model.class_name(true), 16)}\n→ {_short(model.class_name(predicted), 16)} {confidence:.0f} %"
        axes.set_title(title, fontsize=6)
    return png_of(figure, dpi=130)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(min(max(width, 6.4), 24), min(height, 24)), layout="constrained")


def _legend(figure: "Figure", handles: Iterable, names: Iterable[str]) -> None:
    """Below the figure, where it hides nothing."""
    figure.legend(handles, [_short(name, 44) for name in names], fontsize=7, loc="outside lower center", ncols=2)


def _short(name: str, limit: int = LONGEST) -> str:
    """A name for a figure, of which the end is kept; matplotlib would read dollars as formulas."""
    text = name if len(name) <= limit else f"…{name[1 - limit :]}"
    return text.replace("$", r"\$")
