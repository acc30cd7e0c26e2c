"""Metrics as `evaluate.Metric` classes of our own: computed here, without fetching a script from the Hub."""

import datasets
import evaluate
import numpy as np


class TopKAccuracy(evaluate.Metric):
    """Share of images, in percent, whose label is among the k best scores."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of images, in percent, whose label is among the k classes with the best scores.",
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
