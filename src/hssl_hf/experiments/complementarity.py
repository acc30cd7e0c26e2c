"""Two frozen backbones by linear combinations, as the command line runs it: settings in, records, a curve and lines out."""

from pathlib import Path

from hssl_hf.config.evaluation_recipe import load_evaluation_recipe
from hssl_hf.data.files import require_output
from hssl_hf.errors import UserError
from hssl_hf.evaluation.complementarity import FORMATS, Points, complementarity, draw
from hssl_hf.evaluation.splits import extract_splits, split_record
from hssl_hf.experiments.frozen_evaluation import prepare
from hssl_hf.fields import check


def complementarity_curve(
    first: str | Path, second: str | Path, settings: list[str], points: int, output: Path | str, results: Path | str | None
) -> list[str]:
    """Classify by linear combinations of two frozen backbones, and draw the curve.

    Args:
        first, second: folders or Hub repositories.
        settings: as for `evaluate` by k-NN, of one number of neighbors.
        points: weights from 0 to 1.
        output: file of the curve.
        results: file to which the records are added, or None.
    Returns:
        lines for the screen.
    Raises:
        UserError: before any work, for numbers and files that cannot be; and as `evaluate`.
    """
    first, second, points = str(first), str(second), check(Points, points, "points")
    require_output(output, "output", *FORMATS)
    require_output(results, "results")
    recipe = load_evaluation_recipe("knn", None, ["knn.num_neighbors=[20]", *settings])
    if len(recipe.knn.num_neighbors) > 1:
        raise UserError(f"expected one number of neighbors, got knn.num_neighbors={list(recipe.knn.num_neighbors)}")
    splits = []
    for name in (first, second):
        extractor, encoder = prepare(name, recipe)
        splits.append(extract_splits(extractor, encoder, recipe.data, recipe.representation, name))
    settings = {"num_neighbors": recipe.knn.num_neighbors[0], "temperature": recipe.knn.temperature}
    curve, counts = complementarity(*splits, points, **settings)
    draw(curve, (first, second), output)
    lines = [f"α = {alpha:.2f}   k-NN top1  {accuracy:.2f} %" for alpha, accuracy in curve]
    for name, who in (("only_first", f"{first} alone"), ("only_second", f"{second} alone"), ("both", "both")):
        lines.append(f"{counts[name]} test images are classified right by {who}")
    lines.append(str(output))
    values = [("knn_top1", accuracy, "percent", {"alpha": alpha}) for alpha, accuracy in curve]
    values += [(f"knn_right_{name}", count, "images", {}) for name, count in counts.items()]
    for metric, value, unit, alpha in values if results else ():
        used = (recipe.data, recipe.representation, {**settings, **alpha}, f"{first} + {second}", 0)
        split_record(metric, value, len(splits[0].test), *used, unit=unit).append_to(results)
    return lines
