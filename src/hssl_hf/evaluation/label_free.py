"""Measures of features without labels: how many dimensions they use, how close views of an image are, how far images apart."""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from hssl_hf.data.augmentation import Scale
from hssl_hf.errors import UserError
from hssl_hf.fields import Range, Section, Seed

PAIRS_AT_ONCE = 2**24


@dataclass(frozen=True)
class LabelFreeConfig(Section):
    """On what the measures are computed.

    Args:
        images: of the test split, the first ones; RankMe needs many more than the features have dimensions.
        crop_scale: of the two crops of an image whose distance is its alignment.
        seed: of these crops.
    """

    images: Annotated[int, Range(2, 1_000_000)] = 25_600
    crop_scale: Scale = (0.2, 1.0)
    seed: Seed = 0


def rank_me(features: Tensor, epsilon: float = 1e-7) -> float:
    """Effective rank: the exponential of the entropy of the singular values, each as a fraction of their sum.

    Args:
        features: (n, D), of at least two images.
        epsilon: added to the fractions.
    Returns:
        from 1 to min(n, D); the larger, the better features that were learned without labels mostly do.
    Raises:
        UserError: for fewer images, and if all features are zero.
    Source: RankMe, arXiv 2210.02885, equation 1.
    """
    _require_several(features)
    values = torch.linalg.svdvals(features.double())
    if not values.sum() > 0:
        raise UserError("all features are zero, so that they have no rank; check the weights of the model")
    fractions = values / values.sum() + epsilon
    return torch.exp(-(fractions * fractions.log()).sum()).item()


def alignment(first: Tensor, second: Tensor, exponent: float = 2.0) -> float:
    """Mean distance of two views of an image, to a power, on the unit sphere; the smaller, the more invariant.

    Args:
        first, second: (n, D) features of one view of each image, and of another.
        exponent: of the distance.
    Returns:
        from 0 to 4 for the square.
    Source: Wang and Isola, arXiv 2005.10242, section 4.2.
    """
    first, second = F.normalize(first.double(), dim=1), F.normalize(second.double(), dim=1)
    return (first - second).norm(dim=1).pow(exponent).mean().item()


def uniformity(features: Tensor, t: float = 2.0) -> float:
    """Logarithm of the mean of exp(-t distance²) over all pairs of images; the smaller, the more evenly they are spread.

    Args:
        features: (n, D), of at least two images; on the unit sphere only their directions count.
        t: of the Gaussian.
    Returns:
        from about -4 t / 2 to 0.
    Raises:
        UserError: for fewer images.
    Source: Wang and Isola, arXiv 2005.10242, section 4.2.
    """
    _require_several(features)
    features, count = F.normalize(features.float(), dim=1), len(features)
    total = 0.0
    for part in features.split(max(1, PAIRS_AT_ONCE // count)):
        total += torch.exp(2 * t * (part @ features.T - 1)).double().sum().item()
    return torch.tensor((total - count) / (count * (count - 1))).log().item()  # an image with itself is no pair


def _require_several(features: Tensor) -> None:
    if len(features) < 2:
        raise UserError(f"expected features of at least 2 images, got {len(features)}; read further images")
