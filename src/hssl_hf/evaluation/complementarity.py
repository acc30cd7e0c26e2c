"""Two frozen backbones together: does each classify images correctly that the other does not?"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from hssl_hf.errors import UserError
from hssl_hf.evaluation.knn import knn_scores
from hssl_hf.evaluation.metrics import ComplementarySamples, SuccessIoU


@dataclass(frozen=True)
class Complementarity:
    """What two backbones classify correctly, apart and together.

    Args:
        curve: (alpha, accuracy in percent) of alpha parts of the first and 1 - alpha parts of the second.
        apart: N_s, the images that exactly one of them classifies correctly.
        overlap: sIoU of the images that they classify correctly.
        n: number of images.
    """

    curve: list[tuple[float, float]]
    apart: int
    overlap: float
    n: int


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
    banks: tuple[Tensor, Tensor],
    bank_labels: Tensor,
    queries: tuple[Tensor, Tensor],
    labels: Tensor,
    *,
    points: int = 11,
    num_neighbors: int = 20,
    temperature: float = 0.07,
) -> Complementarity:
    """Weighted k-NN on linear combinations of two frozen representations.

    Args:
        banks, queries: features (n, C), (n, D) of the two backbones for the images with labels and for those to be classified.
        bank_labels, labels: (n,) integers.
        points: values of alpha, evenly from 0 to 1, at least 2.
        num_neighbors, temperature: of the k-NN.
    Raises:
        UserError: for fewer than two points.
    Source: HSSL, section 3.3 and figures 7-8.
    Differs: two backbones share no space in which their features could be added, so that here their similarities are, which is
        a concatenation with weights; alpha = 0 and 1 are the single backbones.
    """
    if points < 2:
        raise UserError(f"a curve needs at least two points, got {points}")
    curve, predictions = [], {}
    for alpha in np.linspace(0, 1, points).tolist():
        scores = knn_scores(combine(*banks, alpha), bank_labels, combine(*queries, alpha), num_neighbors, temperature)
        predictions[alpha] = scores.argmax(1)
        curve.append((alpha, 100 * (predictions[alpha] == labels).float().mean().item()))
    inputs = {"predictions": predictions[1.0], "auxiliary": predictions[0.0], "references": labels}
    inputs = {name: value.numpy() for name, value in inputs.items()}
    apart = ComplementarySamples(keep_in_memory=True).compute(**inputs)["N_s"]
    return Complementarity(curve, apart, SuccessIoU(keep_in_memory=True).compute(**inputs)["sIoU"], len(labels))


def draw(found: Complementarity, names: tuple[str, str], path: Path) -> None:
    """The curve, with the better of the single backbones as a line."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    alphas, accuracies = zip(*found.curve, strict=True)
    axes.plot(alphas, accuracies, marker="o", markersize=3.5)
    axes.axhline(max(accuracies[0], accuracies[-1]), color="gray", linewidth=0.9, linestyle="--", label="the better one alone")
    axes.set(xlabel="α", ylabel="k-NN top-1 (%)", title=f"α · {names[0]} + (1 − α) · {names[1]}")
    axes.title.set_fontsize(9)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
