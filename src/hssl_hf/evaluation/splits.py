"""The two splits of an evaluation: labeled images to learn from, and others to classify."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from hssl_hf.data.source import Source
from hssl_hf.evaluation.encoder import Encoder, num_channels
from hssl_hf.evaluation.extraction import Extractor
from hssl_hf.evaluation.features import FeatureSet, Representation
from hssl_hf.evaluation.images import LabeledImages
from hssl_hf.evaluation.labels import align_labels, require_comparable
from hssl_hf.evaluation.records import Record
from hssl_hf.fields import Images, Section

REPEATED = 0.01  # of the test images, which may also be among those of training without a warning
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabeledData(Section):
    """Labeled images of two splits.

    Args:
        path, name, revision, image_column, allow_remote_paths: as in data of a pre-training.
        label_column: one class per image, as an integer or as its name.
        classes: as in data of a pre-training.
        train_split, test_split: images of the second are classified by what was learned from the first.
        train_images, test_images: read at most so many of each; None for all.
        train_images_per_class: read at most so many of every class of the first split; None for all.
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
    train_images_per_class: Images | None = None

    def splits(self, processor: Callable) -> tuple[LabeledImages, LabeledImages]:
        """Training and test images, with the channels that an image processor normalizes."""
        names = ("image_column", "label_column", "classes", "allow_remote_paths")
        same, channels = {name: getattr(self, name) for name in names}, num_channels(processor)
        train = Source(self.path, self.name, self.train_split, self.revision, **same)
        return (
            LabeledImages(train, self.train_images, self.train_images_per_class, channels),
            LabeledImages(replace(train, split=self.test_split), self.test_images, None, channels),
        )


class Splits(NamedTuple):
    """Features of both splits, whose labels are the same numbers for the same classes."""

    train: FeatureSet
    test: FeatureSet


def extract_splits(
    extractor: Extractor, encoder: Encoder | Callable, data: LabeledData, representation: Representation, progress: str
) -> Splits | None:
    """Features of training and test images; None if the extractor was stopped.

    A warning names how many of the test images are among the training images.

    Raises:
        UserError: for images, labels and features with which an accuracy would mean nothing.
    """
    results = []
    for images in data.splits(extractor.processor):
        results.append(extractor.extract(encoder, images, representation, f"{progress}: {images.source.split}"))
        if results[-1] is None:
            return None
    return comparable(*results, data, extractor.accelerator.is_main_process)


def comparable(train: FeatureSet, test: FeatureSet, data: LabeledData, warn: bool = True) -> Splits:
    """Both splits with the same numbers for the same classes.

    Raises:
        UserError: for splits with which an accuracy would mean nothing.
    """
    labels, test_labels, classes = align_labels((train.labels, train.classes), (test.labels, test.classes))
    require_comparable(labels, test_labels)
    if warn and (repeated := test.among(train)) > REPEATED * len(test):
        logger.warning(
            "%d of %d test images (split %r) are among the training images (split %r) too, and are their own nearest "
            "neighbors: the accuracy is not that on new images; choose other splits",
            repeated, len(test), data.test_split, data.train_split,
        )  # fmt: skip
    return Splits(replace(train, labels=labels, classes=classes), replace(test, labels=test_labels, classes=classes))


def split_record(
    metric: str,
    value: float,
    images: int,
    data: LabeledData,
    representation: Representation,
    used: dict,
    subject: str,
    seed: int,
    unit: str = "percent",
    interval: tuple[float, float] | None = None,
) -> Record:
    """The record of a value that was measured on two splits.

    Args:
        metric: with its protocol, such as knn_top1.
        images: of the test split.
        used: settings of the protocol.
        subject, seed, unit, interval: as in `Record`.
    """
    settings = {**used, "features": representation.features, "train_split": data.train_split, "train_images": data.train_images}
    if representation.blocks > 1:
        settings["blocks"] = representation.blocks
    if data.train_images_per_class is not None:
        settings["train_images_per_class"] = data.train_images_per_class
    dataset = Path(data.path).name if Path(data.path).exists() else data.path
    source = {"dataset": dataset, "revision": data.revision, "split": data.test_split}
    return Record(metric, value, unit, subject, **source, n=images, settings=settings, seed=seed, interval=interval)
