"""Two frozen backbones together: does each classify images correctly that the other does not?"""

from io import BytesIO
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from hssl_hf.data.files import write_below
from hssl_hf.evaluation.knn import knn_scores
from hssl_hf.evaluation.metrics import accuracy, complementary_counts
from hssl_hf.evaluation.splits import Splits
from hssl_hf.fields import Range, check

Points = Annotated[int, Range(2, 1001)]
FORMATS = ("png", "pdf", "svg", "jpg")  # of the curve


def combine(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    """Features whose cosine similarity is alpha times that of the first and 1 - alpha times that of the second.

    Args:
        first, second: (n, C) and (n, D) features of the same images.
        alpha: in [0, 1].
    Returns:
        (n, C + D) of length 1.
    """
    first, second = (F.normalize(features.float(), dim=1) for features in (first, second))
    return torch.cat([alpha**0.5 * first, (1 - alpha) ** 0.5 * second], dim=1)


def complementarity(
    first: Splits, second: Splits, points: int = 11, num_neighbors: int = 20, temperature: float = 0.07
) -> tuple[list[tuple[float, float]], dict[str, int]]:
    """Weighted k-NN on linear combinations of two frozen representations.

    Args:
        first, second: of the same images; (n, C) features of one backbone, (n, D) of the other.
        points: values of alpha, evenly from 0 to 1, from 2 to 1001.
        num_neighbors, temperature: of the k-NN.
    Returns:
        the curve, (alpha, accuracy in percent) of alpha parts of the first and 1 - alpha parts of the second; and the test
        images that single backbones classify right: `only_first`, `only_second` and `both`.
    Raises:
        FieldError: for other numbers of points.
    Source: HSSL, appendix A and figures 7-8, where the task is segmentation; here it is classification.
    Differs: two backbones share no space in which their features could be added, so that here their similarities are, which is
        a concatenation with weights; alpha = 0 and 1 are the single backbones.
    """
    points = check(Points, points, "points")
    alphas = np.linspace(0, 1, points).tolist()
    predictions = []
    for alpha in alphas:
        train, test = (combine(one.features, other.features, alpha) for one, other in zip(first, second, strict=True))
        predictions.append(knn_scores(train, first.train.labels, test, num_neighbors, temperature).argmax(1))
    curve = [(alpha, accuracy(classes, first.test.labels)) for alpha, classes in zip(alphas, predictions, strict=True)]
    return curve, complementary_counts(predictions[-1], predictions[0], first.test.labels)


def draw(curve: list[tuple[float, float]], names: tuple[str, str], path: Path | str) -> None:
    """The curve, with the better of the single backbones as a line."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    alphas, accuracies = zip(*curve, strict=True)
    axes.plot(alphas, accuracies, marker="o", markersize=3.5)
    axes.axhline(max(accuracies[0], accuracies[-1]), color="gray", linewidth=0.9, linestyle="--", label="the better one alone")
    axes.set(xlabel="α", ylabel="k-NN top-1 (%)")
    axes.set_title(f"α · {names[0]} + (1 − α) · {names[1]}".replace("$", r"\$"), fontsize=9)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    content, path = BytesIO(), Path(path)
    figure.savefig(content, dpi=110, format=path.suffix.lower().removeprefix(".") or "png")
    write_below(path.parent, path.name, content.getvalue())
