"""A split of labeled images, read once by the workers of all processes together."""

import logging
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from hssl_hf.data.decode import CorruptImageError, LazyImage
from hssl_hf.data.errors import StreamError
from hssl_hf.data.image_cells import image_bytes
from hssl_hf.data.local_dataset import LeftOut
from hssl_hf.data.shard_reader import read_shard
from hssl_hf.data.source import Source, load_source, resolve_classes
from hssl_hf.data.stream import group_of
from hssl_hf.evaluation.labels import Label, label_of, require_label_column

logger = logging.getLogger(__name__)


class Position(NamedTuple):
    """Where an image is in its split: shard and row, by which images are ordered."""

    shard: int
    row: int


class Sample(NamedTuple):
    """One image of a split.

    Args:
        position, name: of the image.
        label: class as the data has it.
        pixels: (C, H, W) uint8; None for an image that cannot be decoded.
        checksum: of its bytes.
        problem: why it cannot be decoded; empty where it can.
        has_other_frames: whether the file holds images behind this one.
    """

    position: Position
    name: str
    label: Label
    pixels: Tensor | None = None
    checksum: int = 0
    problem: str = ""
    has_other_frames: bool = False


@dataclass
class Account:
    """What was not read of a split.

    Args:
        undecodable: images without pixels.
        first_of_several: files of which the first image was read.
        problem: why the last of the former cannot be decoded.
    """

    undecodable: LeftOut = field(default_factory=LeftOut)
    first_of_several: LeftOut = field(default_factory=LeftOut)
    problem: str = ""

    def add(self, sample: Sample) -> None:
        if sample.problem:
            self.undecodable.add("that cannot be decoded", sample.name)
            self.problem = sample.problem
        elif sample.has_other_frames:
            self.first_of_several.add("files with several images", sample.name)

    def merge(self, other: "Account") -> None:
        """Add what another process has not read."""
        self.undecodable.merge(other.undecodable)
        self.first_of_several.merge(other.first_of_several)
        self.problem = self.problem or other.problem

    def messages(self, source: Source, images: int) -> list[str]:
        """What to warn of.

        Args:
            images: that were read.
        Raises:
            StreamError: if there are none.
        """
        split = f"split {source.split!r} of {source.path!r}"
        if not images:
            last = f"; the last one cannot be decoded: {self.problem}" if self.problem else ""
            raise StreamError(f"{split} has no images to evaluate on{last}")
        left_out = [f"{split}: left out are {self.undecodable} images"] if self.undecodable else []
        several = [f"{split}: the first image is read of {self.first_of_several}"] if self.first_of_several else []
        return left_out + several


@cache
def warn_once(message: str) -> None:
    """A warning that is not repeated when the same images are read again, as by the probes of a run."""
    logger.warning("%s", message)


class LabeledImages(IterableDataset):
    """A split of labeled images. Iterated, it gives pixels (C, H, W) and labels, with warnings of what is left out.

    Args:
        source: where images and labels are.
        limit: use the first images only; None for all.
        limit_per_class: use the first images of every class only; None for all.
        channels: C, as in `LazyImage.decode`.
        part: of these images those whose checksums are in this part of all checksums, from 0 to 1.
        labeled: read labels; otherwise the label of every image is 0.
    """

    def __init__(
        self,
        source: Source,
        limit: int | None = None,
        limit_per_class: int | None = None,
        channels: int = 3,
        part: tuple[float, float] = (0.0, 1.0),
        labeled: bool = True,
    ):
        self.source, self.limit, self.limit_per_class, self.channels = source, limit, limit_per_class, channels
        self.part, self.labeled = part, labeled or source.classes is not None
        self._share, self._finished, self._wanted = (0, 1), frozenset(), None

    def share(self, rank: int, world_size: int, finished: frozenset[Position] = frozenset()) -> "LabeledImages":
        """The part of one of several processes, without images that are finished already."""
        own = copy(self)
        own._share, own._finished = (rank, world_size), finished
        return own

    def at(self, positions: frozenset[Position]) -> "LabeledImages":
        """Those of the images at these positions."""
        own = copy(self)
        own._wanted = positions
        return own

    def held_out(self, fraction: float) -> "LabeledImages":
        """The fraction of the images that a training with `1 - fraction` of them does not see."""
        own = copy(self)
        own.part = (1 - fraction, 1.0)
        return own

    def __iter__(self) -> Iterator[tuple[Tensor, Label]]:
        """
        Raises:
            StreamError: if no image is left, or the label of one is no class.
        """
        account, images = Account(), 0
        for sample in self.samples():
            account.add(sample)
            if sample.pixels is not None:
                images += 1
                yield sample.pixels, sample.label
        for message in account.messages(self.source, images):
            warn_once(message)

    def samples(self) -> Iterator[Sample]:
        """The images of this worker of this process, decoded, in ascending order.

        Raises:
            StreamError: if the data cannot be read, or the label of an image is no class.
        """
        for position, image, label in self._rows():
            if position in self._finished or (self._wanted is not None and position not in self._wanted):
                continue
            name = image.get("path") or f"row {position.row} of shard {position.shard}"
            data = image_bytes(image, self.source)
            checksum = zlib.crc32(data)
            if not self.part[0] * 2**32 <= checksum < self.part[1] * 2**32:
                continue
            try:
                encoded = LazyImage(data)
                pixels = encoded.decode(channels=self.channels)
            except CorruptImageError as error:
                yield Sample(position, name, label, problem=str(error))
            else:
                yield Sample(position, name, label, pixels, checksum, "", encoded.has_other_frames())

    def labels(self) -> dict[Position, Label]:
        """Labels of all images by their positions, without reading an image.

        Raises:
            StreamError: if the data cannot be read, or the label of an image is no class.
        """
        return {position: label for position, _, label in self._rows()}

    def class_names(self) -> list[str] | None:
        """Names of the classes that integers stand for; None where the data does not hold them."""
        features = self.open()[0].features or {}
        return getattr(features.get(self.source.label_column), "names", None)

    def open(self) -> tuple:
        """The opened data, and the labels that are used; None for all.

        Raises:
            StreamError: if there is no such split or column, or its type is not that of labels.
        """
        dataset = load_source(self.source, also=[self.source.label_column] if self.labeled else [])
        if self.labeled:
            require_label_column(dataset.features, self.source)
        return dataset, resolve_classes(self.source, dataset)

    def _rows(self) -> Iterator[tuple[Position, Mapping, Label]]:
        """Images of this worker as they are stored, and their labels.

        Which images are the first is known to those workers only that see the rows of all.
        """
        dataset, chosen = self.open()
        worker = get_worker_info()
        rank, world_size = self._share
        own, workers = (rank * worker.num_workers + worker.id, world_size * worker.num_workers) if worker else self._share
        is_limited = (self.limit, self.limit_per_class) != (None, None)
        group, groups, offset, stride = group_of(own, workers, 1 if is_limited else dataset.num_shards)
        counts, read = Counter(), 0
        for shard in range(group, dataset.num_shards, groups):
            for row, cells in read_shard(dataset, shard, 0, self.source):
                image = cells["image"] or {}
                label = label_of(cells[self.source.label_column], image.get("path"), self.source) if self.labeled else 0
                if chosen is not None and label not in chosen:
                    continue
                if self.limit_per_class is not None:
                    counts[label] += 1
                    if counts[label] > self.limit_per_class:
                        continue
                if self.limit is not None and read >= self.limit:
                    return
                if read % stride == offset:
                    yield Position(shard, row), image, label
                read += 1
