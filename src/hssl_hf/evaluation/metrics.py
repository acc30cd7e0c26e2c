"""Metrics as `evaluate.Metric` classes of our own: computed here, without fetching a script from the Hub."""

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor

from hssl_hf.evaluation.label_free import alignment, rank_me, uniformity
from hssl_hf.objectives.discrepancy import discrepancy

OUTPUTS, LABEL = datasets.Sequence(datasets.Value("float32")), datasets.Value("int64")


class _Metric(evaluate.Metric):
    """A metric that declares the type of each of its inputs."""

    inputs: datasets.Features

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(description=self.__doc__, citation="", inputs_description="", features=self.inputs)


class TopKAccuracy(_Metric):
    """Images, in percent, whose label is among the k classes with the best scores.

    Args of compute:
        predictions: one list of class scores per image.
        references: one label per image.
    """

    inputs = datasets.Features(predictions=OUTPUTS, references=LABEL)

    def _compute(self, predictions, references, ks: tuple[int, ...] = (1, 5)) -> dict[str, float]:
        scores, labels = np.asarray(predictions), np.asarray(references)
        order = np.argsort(-scores, axis=1, kind="stable")
        return {f"top{k}": float(100 * (order[:, :k] == labels[:, None]).any(1).mean()) for k in ks}


class Discrepancy(_Metric):
    """D: the mean divergence of two branches' outputs, in nats; the larger, the more a base is expected to gain from a head.

    Example:
        Discrepancy().compute(predictions=base, references=auxiliary, temperature=0.04)  # {"D": 0.083}

    Args of compute:
        predictions, references: (n, d) outputs of base and auxiliary head for the same images.
        temperature: as in `discrepancy`.
        center: subtract from each branch the mean of its outputs first, as a centered teacher does.
    Source: HSSL, equation 5.
    """

    inputs = datasets.Features(predictions=OUTPUTS, references=OUTPUTS)

    def _compute(self, predictions, references, temperature: float = 1.0, center: bool = True) -> dict[str, float]:
        base, auxiliary = (torch.as_tensor(np.asarray(outputs, dtype=np.float32)) for outputs in (predictions, references))
        if center:
            base, auxiliary = base - base.mean(0), auxiliary - auxiliary.mean(0)
        return {"D": discrepancy(base, auxiliary, temperature).item()}


class SolvedSamples(_Metric):
    """N_s: how many images the auxiliary head solves that the base model pre-trained without it does not.

    Example:
        SolvedSamples().compute(baseline=baseline, auxiliary=auxiliary, references=labels)  # {"N_s": 1278}

    Args of compute:
        baseline: (n,) classes that the base pre-trained by the baseline predicts (it solves B1).
        auxiliary: (n,) classes that the head pre-trained by HSSL predicts (it solves H).
        references: (n,) true classes.
    Source: HSSL, equation 3: |H ∩ (U - B1)|. An image is solved where the weighted k-NN of 20 neighbors classifies it right.
    """

    inputs = datasets.Features(baseline=LABEL, auxiliary=LABEL, references=LABEL)

    def _compute(self, baseline, auxiliary, references) -> dict[str, int]:
        solved_before, solved_by_head = _solved(references, baseline, auxiliary)
        return {"N_s": int((solved_by_head & ~solved_before).sum())}


class SolvedIoU(_Metric):
    """sIoU: of the images that the base solves with HSSL and not without, the fraction that the head solves too.

    Example:
        SolvedIoU().compute(base=base, baseline=baseline, auxiliary=auxiliary, references=labels)  # {"sIoU": 0.702}

    Args of compute:
        base: (n,) classes that the base pre-trained by HSSL predicts (it solves B2).
        baseline, auxiliary, references: as for `SolvedSamples`.
    Returns:
        a fraction, of which the paper prints percentages; None where the base gains no image.
    Source: HSSL, equation 4: |B2 ∩ (U - B1) ∩ H| / |B2 ∩ (U - B1)|.
    """

    inputs = datasets.Features(base=LABEL, baseline=LABEL, auxiliary=LABEL, references=LABEL)

    def _compute(self, base, baseline, auxiliary, references) -> dict[str, float | None]:
        solved_after, solved_before, solved_by_head = _solved(references, base, baseline, auxiliary)
        gained = solved_after & ~solved_before
        return {"sIoU": int((gained & solved_by_head).sum()) / int(gained.sum()) if gained.any() else None}


class RankMe(_Metric):
    """Effective rank of features, from 1 to their number of dimensions; args of compute: predictions, (n, D) features.

    Source: RankMe, arXiv 2210.02885, equation 1.
    """

    inputs = datasets.Features(predictions=OUTPUTS)

    def _compute(self, predictions) -> dict[str, float]:
        return {"rank_me": rank_me(_matrix(predictions))}


class Alignment(_Metric):
    """Mean squared distance of two views of an image on the unit sphere; the smaller, the more invariant.

    Args of compute:
        predictions, references: (n, D) features of one view of each image, and of another.
    Source: Wang and Isola, arXiv 2005.10242, section 4.2.
    """

    inputs = datasets.Features(predictions=OUTPUTS, references=OUTPUTS)

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"alignment": alignment(_matrix(predictions), _matrix(references))}


class Uniformity(_Metric):
    """Logarithm of the mean Gaussian potential of all pairs of images; args of compute: predictions, (n, D) features.

    Source: Wang and Isola, arXiv 2005.10242, section 4.2.
    """

    inputs = datasets.Features(predictions=OUTPUTS)

    def _compute(self, predictions) -> dict[str, float]:
        return {"uniformity": uniformity(_matrix(predictions))}


def _matrix(features) -> Tensor:
    return torch.as_tensor(np.asarray(features, dtype=np.float32))


def _solved(references, *predictions) -> list[np.ndarray]:
    """The images that each of several networks solves."""
    labels = np.asarray(references)
    return [np.asarray(classes) == labels for classes in predictions]


def complementary_counts(first: Tensor, second: Tensor, labels: Tensor) -> dict[str, int]:
    """How many images only the first, only the second, and both of two networks classify right, of (n,) classes each."""
    first, second = first == labels, second == labels
    counts = {"only_first": first & ~second, "only_second": second & ~first, "both": first & second}
    return {name: int(images.sum()) for name, images in counts.items()}


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Percentage of images whose predicted class is right, of (n,) classes each."""
    return 100 * (predictions == labels).float().mean().item()
