"""Metrics as `evaluate.Metric` classes of our own: computed here, without fetching a script from the Hub."""

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor

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


class ComplementarySamples(_Metric):
    """N_s: how many images exactly one of two branches classifies correctly.

    Example:
        ComplementarySamples().compute(predictions=base, auxiliary=auxiliary, references=labels)
        # {"N_s": 1200, "base_only": 700, "auxiliary_only": 500}

    Args of compute:
        predictions, auxiliary: (n,) classes that base and auxiliary head predict.
        references: (n,) true classes.
    Source: HSSL, equation 3; both one-sided counts are given beside their sum.
    """

    inputs = datasets.Features(predictions=LABEL, auxiliary=LABEL, references=LABEL)

    def _compute(self, predictions, auxiliary, references) -> dict[str, int]:
        base, other = _correct(predictions, auxiliary, references)
        counts = {"base_only": int((base & ~other).sum()), "auxiliary_only": int((other & ~base).sum())}
        return {"N_s": sum(counts.values()), **counts}


class SuccessIoU(_Metric):
    """sIoU: the fraction that both branches classify correctly, of the images that at least one does; 1 if the sets agree.

    Example:
        SuccessIoU().compute(predictions=base, auxiliary=auxiliary, references=labels)  # {"sIoU": 0.81}

    Args of compute:
        as for `ComplementarySamples`. Where neither branch is ever right, the empty sets agree.
    Source: HSSL, equation 4.
    """

    inputs = ComplementarySamples.inputs

    def _compute(self, predictions, auxiliary, references) -> dict[str, float]:
        base, other = _correct(predictions, auxiliary, references)
        union = int((base | other).sum())
        return {"sIoU": int((base & other).sum()) / union if union else 1.0}


def _correct(predictions, auxiliary, references) -> tuple[np.ndarray, np.ndarray]:
    """Where base and auxiliary head are right."""
    labels = np.asarray(references)
    return np.asarray(predictions) == labels, np.asarray(auxiliary) == labels


def overlap(base: Tensor, auxiliary: Tensor, labels: Tensor) -> dict[str, float]:
    """N_s, with its one-sided counts, and sIoU of the classes (n,) that two branches predict."""
    inputs = {"predictions": base, "auxiliary": auxiliary, "references": labels}
    return ComplementarySamples(keep_in_memory=True).compute(**inputs) | SuccessIoU(keep_in_memory=True).compute(**inputs)


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Percentage of images whose predicted class is right, of (n,) classes each."""
    return 100 * (predictions == labels).float().mean().item()
