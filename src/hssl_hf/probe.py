"""The k-NN probe: one protocol for training curves, final figures and the command line."""

from collections.abc import Callable
from pathlib import Path

from hssl_hf.evaluate.encoder import Encoder
from hssl_hf.evaluate.features import LabelledImages
from hssl_hf.evaluate.knn import knn_accuracy
from hssl_hf.evaluate.results import Record
from hssl_hf.recipe import ProbeConfig
from hssl_hf.stream import Source


class Probe:
    """Weighted k-NN on labelled images.

    Args:
        config: images and protocol.
        processor: image processor of transformers, the one that is exported.
    """

    def __init__(self, config: ProbeConfig, processor: Callable):
        self.config, self.processor = config, processor

    def __call__(self, encoder: Encoder, progress: str) -> dict[str, float]:
        """Accuracies top1 and top5 in percent, and n, the number of query images."""
        config = self.config
        bank = self._images(config.bank_split, config.bank_images)
        queries = self._images(config.query_split, config.query_images)
        return knn_accuracy(encoder, self.processor, bank, queries, config.neighbours, config.temperature, progress)

    def record(self, metric: str, value: float, n: int, subject: str, seed: int, path: Path) -> None:
        """Add one figure to a file of records, with what is needed to measure it again."""
        config = self.config
        settings = {
            "neighbours": config.neighbours,
            "temperature": config.temperature,
            "bank_split": config.bank_split,
            "bank_images": config.bank_images,
        }
        dataset = Path(config.path).name if Path(config.path).exists() else config.path
        source = {"dataset": dataset, "revision": config.revision, "split": config.query_split}
        Record(
            metric=f"knn_{metric}", value=value, unit="percent", subject=subject, n=n, settings=settings, seed=seed, **source
        ).append_to(path)

    def _images(self, split: str, limit: int | None) -> LabelledImages:
        config = self.config
        source = Source(config.path, config.name, split, config.revision, config.image_column)
        return LabelledImages(source, config.label_column, limit)
