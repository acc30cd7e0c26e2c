"""Metrics as `evaluate.Metric` classes of our own: computed here, without fetching a script from the Hub."""

import datasets
import evaluate
import numpy as np
import torch

from hssl_hf.objectives.discrepancy import discrepancy


class TopKAccuracy(evaluate.Metric):
    """Images, in percent, whose label is among the k best scores."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Images, in percent, whose label is among the k classes with the best scores.",
            citation="",
            inputs_description="predictions: one list of class scores per image; references: one label per image.",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, ks: tuple[int, ...] = (1, 5)) -> dict[str, float]:
        scores, labels = np.asarray(predictions), np.asarray(references)
        order = np.argsort(-scores, axis=1, kind="stable")
        return {f"top{k}": float(100 * (order[:, :k] == labels[:, None]).any(1).mean()) for k in ks}


class Discrepancy(evaluate.Metric):
    """D: the mean divergence of two branches' outputs, in nats; the larger, the more a base is expected to gain from a head.

    Example:
        Discrepancy().compute(predictions=base, references=auxiliary, temperature=0.04)  # {"D": 0.083}

    Args of compute:
        predictions, references: (n, d) outputs of base and auxiliary head for the same images.
        temperature: as in `discrepancy`.
        center: subtract from each branch the mean of its outputs first, as a centerd teacher does.
    Source: HSSL, equation 5.
    """

    def _info(self) -> evaluate.MetricInfo:
        outputs = datasets.Sequence(datasets.Value("float32"))
        return _info("Mean divergence of two branches' outputs.", {"predictions": outputs, "references": outputs})

    def _compute(self, predictions, references, temperature: float = 1.0, center: bool = True) -> dict[str, float]:
        base, auxiliary = (torch.as_tensor(np.asarray(outputs, dtype=np.float32)) for outputs in (predictions, references))
        if center:
            base, auxiliary = base - base.mean(0), auxiliary - auxiliary.mean(0)
        return {"D": discrepancy(base, auxiliary, temperature).item()}


class ComplementarySamples(evaluate.Metric):
    """N_s: how many images exactly one of two branches classifies correctly.

    Example:
        ComplementarySamples().compute(predictions=base, auxiliary=auxiliary, references=labels)
        # {"N_s": 1200, "base_only": 700, "auxiliary_only": 500}

    Args of compute:
        predictions, auxiliary: (n,) classes that base and auxiliary head predict.
        references: (n,) true classes.
    Source: HSSL, equation 3; both one-sided counts are given beside their sum.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info("Images that exactly one of two branches classifies correctly.", _classes())

    def _compute(self, predictions, auxiliary, references) -> dict[str, int]:
        base, other = _correct(predictions, auxiliary, references)
        counts = {"base_only": int((base & ~other).sum()), "auxiliary_only": int((other & ~base).sum())}
        return {"N_s": sum(counts.values()), **counts}


class SuccessIoU(evaluate.Metric):
    """sIoU: the fraction that both branches classify correctly, of the images that at least one does; 1 if the sets agree.

    Example:
        SuccessIoU().compute(predictions=base, auxiliary=auxiliary, references=labels)  # {"sIoU": 0.81}

    Args of compute:
        as for `ComplementarySamples`. Where neither branch is ever right, the empty sets agree.
    Source: HSSL, equation 4.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info("Overlap of the images that two branches classify correctly.", _classes())

    def _compute(self, predictions, auxiliary, references) -> dict[str, float]:
        base, other = _correct(predictions, auxiliary, references)
        union = int((base | other).sum())
        return {"sIoU": int((base & other).sum()) / union if union else 1.0}


def _correct(predictions, auxiliary, references) -> tuple[np.ndarray, np.ndarray]:
    """Where base and auxiliary head are right."""
    labels = np.asarray(references)
    return np.asarray(predictions) == labels, np.asarray(auxiliary) == labels


def _classes() -> dict:
    return {name: datasets.Value("int64") for name in ("predictions", "auxiliary", "references")}


def _info(description: str, features: dict) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description, citation="", inputs_description="", features=datasets.Features(features)
    )
