"""The probes: one protocol for training curves, final figures and the command line."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from torch import Tensor

from hssl_hf.data.source import Source
from hssl_hf.evaluation.encoder import Encoder, num_channels
from hssl_hf.evaluation.features import LabeledImages, Seen, extract
from hssl_hf.evaluation.knn import knn_scores
from hssl_hf.evaluation.labels import require_comparable
from hssl_hf.evaluation.linear import LinearConfig, linear_accuracy
from hssl_hf.evaluation.metrics import TopKAccuracy
from hssl_hf.evaluation.records import Record
from hssl_hf.fields import Images, Range, Section, Temperature

REPEATED = 0.01  # of the test images, which may also be among those of training without a warning
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbeConfig(Section):
    """Labeled images on which a k-NN classifier is evaluated periodically; it never influences the training.

    Args:
        path, name, revision, image_column, allow_remote_paths: as in data; path None for no probe.
        label_column: integer labels.
        classes: as in data.
        train_split, test_split: images of the second are classified by their nearest neighbors in the first.
        train_images, test_images: read at most so many of each; None for all.
        every_epochs: how often.
        features: of an image: cls, the class token (or pooled patches), or patches, the layer norm of the patches' mean.
        num_neighbors, temperature: of the weighted k-NN.
        crop_pct: side of the center crop as a fraction of the resized image's short side.
    Differs: while they train, the recipes of the papers compare with 50,000 training images; the papers' figures are with all
        of them, as `hssl-hf evaluate` computes them.
    """

    path: str | None = None
    name: str | None = None
    revision: str | None = None
    image_column: str | None = None
    allow_remote_paths: bool = False
    label_column: str = "label"
    classes: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    train_images: Images | None = None
    test_images: Images | None = None
    every_epochs: Annotated[float, Range(above=0, most=1_000_000)] = 10.0
    features: Literal["cls", "patches"] = "cls"
    num_neighbors: Images = 20
    temperature: Temperature = 0.07
    crop_pct: Annotated[float, Range(0.1, 1)] = 0.875


class Probe:
    """Weighted k-NN and linear classification on labeled images.

    Args:
        config: images and protocol.
        processor: image processor of transformers, the one that is exported.
    """

    def __init__(self, config: ProbeConfig, processor: Callable):
        self.config, self.processor = config, processor

    def knn(self, encoder: Encoder, progress: str) -> dict[str, float]:
        """Accuracies top1 and top5 in percent, and n, the number of test images."""
        train, (features, labels) = self.features(encoder, progress)
        scores = knn_scores(*train, features, **self.knn_settings())
        return {**TopKAccuracy(keep_in_memory=True).compute(predictions=scores, references=labels), "n": len(labels)}

    def linear(self, encoder: Encoder, config: LinearConfig, progress: str) -> dict[str, float]:
        """As `knn`, of a linear classifier, with the chosen learning_rate and its validation_top1."""
        return linear_accuracy(*self.features(encoder, progress), config, progress)

    def features(self, encoder: Encoder, progress: str) -> list[tuple[Tensor, Tensor]]:
        """Features (n, D) and labels (n,) of training and test images; a warning if the same images are among both.

        Raises:
            UserError: for images, labels and features with which an accuracy would mean nothing.
        """
        kind, splits = self.config.features, self.splits()
        images = train, test = [Seen(split) for split in splits]
        names = [f"{progress}: {split.source.split}" for split in splits]
        features = [extract(encoder, self.processor, *pair) for pair in zip(images, [kind] * 2, names, strict=True)]
        require_comparable(features[0][1], features[1][1])
        if (repeated := test.among(train)) > REPEATED * len(test.checksums):
            logger.warning(
                "%d of %d test images (split %r) are among the training images (split %r) too, and are their own nearest "
                "neighbors: the accuracy is not that on new images; choose other splits",
                repeated, len(test.checksums), self.config.test_split, self.config.train_split,
            )  # fmt: skip
        return features

    def record(
        self, metric: str, value: float, n: int, settings: dict, subject: str, seed: int, path: Path, unit: str = "percent"
    ) -> None:
        """Append one value to a file of records, with what is needed to reproduce it.

        Args:
            metric: with its protocol, for example knn_top1.
            settings: of the protocol.
        """
        config = self.config
        images = {"features": config.features, "train_split": config.train_split, "train_images": config.train_images}
        dataset = Path(config.path).name if Path(config.path).exists() else config.path
        source = {"dataset": dataset, "revision": config.revision, "split": config.test_split}
        Record(metric, value, unit, subject, **source, n=n, settings={**settings, **images}, seed=seed).append_to(path)

    def knn_settings(self) -> dict:
        return {"num_neighbors": self.config.num_neighbors, "temperature": self.config.temperature}

    def splits(self) -> tuple[LabeledImages, LabeledImages]:
        """Training and test images."""
        config = self.config
        names = ("image_column", "label_column", "classes", "allow_remote_paths")
        same = {name: getattr(config, name) for name in names}
        train = Source(config.path, config.name, config.train_split, config.revision, **same)
        test, channels = replace(train, split=config.test_split), num_channels(self.processor)
        return LabeledImages(train, config.train_images, channels), LabeledImages(test, config.test_images, channels)
