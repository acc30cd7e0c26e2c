"""The probes: one protocol for training curves, final figures and the command line."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from hssl_hf.evaluate.encoder import Encoder
from hssl_hf.evaluate.features import LabelledImages, extract
from hssl_hf.evaluate.knn import knn_accuracy
from hssl_hf.evaluate.linear import LinearConfig, linear_accuracy
from hssl_hf.evaluate.results import Record
from hssl_hf.recipe import ProbeConfig
from hssl_hf.source import Source


class Probe:
    """Weighted k-NN and linear classification on labelled images.

    Args:
        config: images and protocol.
        processor: image processor of transformers, the one that is exported.
    """

    def __init__(self, config: ProbeConfig, processor: Callable):
        self.config, self.processor = config, processor

    def knn(self, encoder: Encoder, progress: str) -> dict[str, float]:
        """Accuracies top1 and top5 in percent, and n, the number of query images."""
        protocol = self.config.neighbours, self.config.temperature, self.config.features
        return knn_accuracy(encoder, self.processor, *self.splits(), *protocol, progress)

    def linear(self, encoder: Encoder, linear: LinearConfig, progress: str) -> dict[str, float]:
        """As `knn`; trained on the bank, tested on the queries, with the chosen learning_rate and its validation_top1."""
        return linear_accuracy(encoder, self.processor, *self.splits(), self.config.features, linear, progress)

    def features(self, encoder: Encoder, progress: str) -> list[tuple[Tensor, Tensor]]:
        """Features (n, D) and labels (n,) of bank and queries."""
        return [
            extract(encoder, self.processor, split, self.config.features, progress=f"{progress}: {split.source.split}")
            for split in self.splits()
        ]

    def record(
        self, metric: str, value: float, n: int, settings: dict, subject: str, seed: int, path: Path, unit: str = "percent"
    ) -> None:
        """Add one figure to a file of records, with what is needed to measure it again.

        Args:
            metric: with its protocol, for example knn_top1.
            settings: of the protocol.
        """
        config = self.config
        settings = {
            **settings, "features": config.features, "bank_split": config.bank_split, "bank_images": config.bank_images,
        }  # fmt: skip
        dataset = Path(config.path).name if Path(config.path).exists() else config.path
        source = {"dataset": dataset, "revision": config.revision, "split": config.query_split}
        record = Record(metric, value, unit, subject, **source, n=n, settings=settings, seed=seed)
        record.append_to(path)

    def knn_settings(self) -> dict:
        return {"neighbours": self.config.neighbours, "temperature": self.config.temperature}

    def splits(self) -> list[LabelledImages]:
        """Bank and queries."""
        config = self.config
        chosen = ((config.bank_split, config.bank_images), (config.query_split, config.query_images))
        where = (config.revision, config.image_column)
        labels = {"classes": config.classes, "label_column": config.label_column}
        return [
            LabelledImages(Source(config.path, config.name, split, *where, **labels), config.label_column, limit)
            for split, limit in chosen
        ]
