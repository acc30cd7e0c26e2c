"""Predicted classes of test images, and the accuracies that they give, with their uncertainty."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

BEST = 5  # classes of an image that are kept
RESAMPLES, LEVEL = 2000, 0.95


@dataclass(frozen=True)
class Classification:
    """What a classifier predicts for m test images.

    Args:
        ranking: (m, up to 5) classes, the best first.
        confidence: (m,) score of the best one as a fraction of those of all.
        labels: (m,) true classes.
    """

    ranking: Tensor
    confidence: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def correct(self, k: int = 1) -> Tensor:
        """(m,) bool: whether the true class is among the best k."""
        return (self.ranking[:, :k] == self.labels[:, None]).any(1)

    def accuracy(self, k: int = 1) -> float:
        """Top-k accuracy in percent."""
        return 100 * self.correct(k).double().mean().item()

    def interval(self, k: int = 1) -> tuple[float, float]:
        """Bounds in percent between which 95 % of the accuracies on resampled test images are."""
        return bootstrap_interval(100.0 * self.correct(k).numpy())


def rank_classes(scores: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """The best classes (m, up to 5), and the score of the best one as a fraction of the total; of equal classes the first.

    Args:
        scores: (m, classes).
        total: (m,) what the scores of an image add up to.
    """
    best, order = scores.sort(dim=1, descending=True, stable=True)
    return order[:, :BEST], best[:, 0] / total


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of a mean over images, by drawing as many of them with replacement 2,000 times.

    Args:
        values: (m,) one per image.
        seed: of the draws.
    Returns:
        bounds that hold 95 % of the means.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    unique, counts = np.unique(values, return_counts=True)  # images of the same value are the same to a mean
    draws = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=RESAMPLES)
    low, high = np.quantile(draws @ unique / len(values), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def accuracy_interval(accuracy: float, images: int) -> tuple[float, float]:
    """`bootstrap_interval` of an accuracy in percent on so many images."""
    right = round(accuracy / 100 * images)
    return bootstrap_interval(np.repeat([100.0, 0.0], [right, images - right]))
