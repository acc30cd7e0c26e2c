"""The curves of a run, from the lines of its log."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from hssl_hf.data.files import write_below

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_curves(lines: list[dict], target: Path | str) -> None:
    """Draw `curves_png` into a file, if there is anything to draw."""
    if content := curves_png(lines):
        write_below(Path(target).parent, Path(target).name, content)


def curves_png(lines: list[dict]) -> bytes:
    """Loss and its terms, discrepancy or collapse, k-NN and learning rate over the steps, as far as the log has them.

    Returns:
        the figure; empty if the log has none of them.
    """
    from matplotlib.figure import Figure

    panels = _panels(lines)
    if not panels:
        return b""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * rows), layout="constrained")
    for number, (title, keys) in enumerate(panels.items(), 1):
        _draw_panel(figure.add_subplot(rows, columns, number), title, {key: points_of(lines, key) for key in keys})
    return png_of(figure)


def png_of(figure: "Figure", dpi: int = 110) -> bytes:
    """A figure of matplotlib as a PNG file."""
    content = BytesIO()
    figure.savefig(content, dpi=dpi, format="png")
    return content.getvalue()


def points_of(lines: list[dict], key: str) -> list[tuple[int, float]]:
    """Step and value of the lines that have this key."""
    return [(line["step"], line[key]) for line in lines if line.get(key) is not None]


def _panels(lines: list[dict]) -> dict[str, list[str]]:
    """Keys of the log by the title of their panel; none of what the log lacks."""
    names = {key for line in lines for key, value in line.items() if value is not None}
    terms = sorted(k for k in names if k.startswith(("cls_", "patch_", "positive", "negative", "pixels", "representations")))
    panels = {
        "loss": ["loss", *(terms if len(terms) > 1 else [])],
        "discrepancy (nats)": sorted(key for key in names if key.startswith("discrepancy")),
        "collapse of the targets": ["collapse"],
        "entropy (nats)": sorted(key for key in names if key.startswith(("teacher_entropy", "student_entropy"))),
        "RankMe of the teacher": ["rank_me"],
        "k-NN top-1 (%)": ["knn_top1", "knn_top1_pixels"],
        "linear probe top-1 (%)": ["linear_top1", "linear_top1_pixels"],
        "learning rate": ["learning_rate"],
    }
    return {title: shown for title, keys in panels.items() if (shown := [key for key in keys if key in names])}


def _draw_panel(axes, title: str, curves: dict[str, list[tuple[int, float]]]) -> None:
    for key, points in curves.items():
        if key.endswith("_pixels"):
            axes.axhline(points[0][1], color="gray", linestyle="--", linewidth=1, label="raw pixels")
        else:
            label = "backbone" if key.endswith("_top1") else key.replace("_", " ")
            axes.plot(*zip(*points, strict=True), marker=None if len(points) > 40 else ".", linewidth=1.2, label=label)
    axes.set(title=title, xlabel="step")
    if title.startswith("discrepancy"):
        axes.set_yscale(scale([value for points in curves.values() for _, value in points]))
    axes.grid(alpha=0.25)
    if len(curves) > 1:
        axes.legend(fontsize=7)


def scale(values: list[float]) -> str:
    """Of an axis: log for positive values that differ more than tenfold, as discrepancies do early in training."""
    return "log" if 0 < 10 * min(values) < max(values) else "linear"
