"""The image stream: any dataset of images -> endless encoded images, split by process and worker, exactly resumable.

The inputs are Hub repositories, folders of images, parquet files or tar shards; the outputs `EncodedImage`s. Images are not
decoded here: bytes are cheap to shuffle and to skip. An epoch is a permutation of the shards, distributed over the workers, and
a worker shuffles windows of rows. The order follows from (seed, epoch, worker, window), so that a position is four integers.
"""

import math
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

from hssl_hf.data.errors import StreamError
from hssl_hf.data.image_cells import image_bytes
from hssl_hf.data.local_dataset import LocalDataset
from hssl_hf.data.shard_reader import read_shard
from hssl_hf.data.source import Source, load_source, resolve_classes


class EncodedImage(NamedTuple):
    """One image as it is in its file.

    Args:
        data: bytes.
        name: for messages.
        epoch: pass over the data that it belongs to.
        shard, row: where it is in the data.
        label: as it is in the data, where labels are read.
    """

    data: bytes
    name: str
    epoch: int
    shard: int = 0
    row: int = 0
    label: object = None


@dataclass(frozen=True)
class Position:
    """Where a window of rows begins.

    Args:
        epoch: pass over the data.
        shard: index in this epoch's order of shards.
        row: row in that shard.
        seen: images of this pass so far.
        window: windows since the beginning of the run.
    """

    epoch: int = 0
    shard: int = 0
    row: int = 0
    seen: int = 0
    window: int = 0


def group_of(worker: int, workers: int, shards: int) -> tuple[int, int, int, int]:
    """Which shards and rows a worker reads: groups of equally many workers take turns at shards, the workers of one at rows.

    Returns:
        its group and the number of groups, at most one per shard; its place in the group, and how many are in it.
    """
    groups = max(n for n in range(1, workers + 1) if workers % n == 0 and n <= shards)
    return worker % groups, groups, worker // groups, workers // groups


class ImageStream(torch.utils.data.IterableDataset):
    """An endless stream of encoded images; each worker of each process reads its own images.

    Within an epoch no two workers see the same image: each has its own shards if there are enough; otherwise several
    workers share a shard and take every n-th row.

    Args:
        source: of the images.
        seed: seed of the order.
        rank, world_size: index and number of processes; the number of workers is that of the `DataLoader`.
        shuffle_buffer_size: rows that are shuffled together; 1 keeps the order of the files.
        minimum: fewest images of a worker in a pass, so that a batch is never larger than a pass.
        labels: read labels too.
        positions: (shard, row) of the images to read; None for all.
    Raises:
        StreamError: while iterating, for unreadable shards, an empty stream or fewer than `minimum` images.
    """

    def __init__(
        self,
        source: Source,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle_buffer_size: int = 2048,
        minimum: int = 1,
        labels: bool = False,
        positions: Collection[tuple[int, int]] | None = None,
    ):
        self.positions = positions
        self.source, self.seed, self.shuffle_buffer_size, self.minimum = source, seed, shuffle_buffer_size, minimum
        self.rank, self.world_size = rank, world_size
        self.dataset = load_source(source, also=[source.label_column] if labels or source.classes else [])
        self.chosen = resolve_classes(source, self.dataset)
        self._start, self._taken, self._resharded = Position(), 0, None

    def state_dict(self) -> dict:
        """Position of the next image: its window, how many images of it are taken, and what other workers left unread."""
        return {"start": asdict(self._start), "taken": self._taken, "resharded": deepcopy(self._resharded)}

    def load_state_dict(self, state: Mapping) -> None:
        self._start, self._taken = Position(**state["start"]), state["taken"]
        self._resharded = deepcopy(state.get("resharded"))

    def reshard_from(self, states: Sequence[Mapping]) -> None:
        """Continue where another number of workers stopped: no image is lost or repeated.

        Every worker takes some of the unread images of the furthest epoch that any of them had begun.

        Args:
            states: `state_dict` of all of them, in order.
        """
        window = 1 + max(state["start"]["window"] for state in states)
        # A worker that still reads what others left is itself one epoch further than the images it reads.
        epoch = 1 + max(state["start"]["epoch"] - (state.get("resharded") is not None) for state in states)
        self._start, self._taken = Position(epoch, window=window), 0
        # Positions of all of them; how many of those assigned to this worker are read to their end; images read so far.
        self._resharded = {"states": deepcopy(list(states)), "finished": 0, "count": 0}

    def __iter__(self) -> Iterator[EncodedImage]:
        worker = get_worker_info()
        workers, worker_id = (worker.num_workers, worker.id) if worker else (1, 0)
        yield from self._images(self.rank * workers + worker_id, self.world_size * workers)

    def _images(self, worker: int, workers: int, last_epoch: float = math.inf) -> Iterator[EncodedImage]:
        if self._resharded is not None:
            yield from self._remaining(worker, workers)
            self._resharded = None
        is_fixed = self.dataset.num_shards >= workers or self.positions is not None  # which count in the shards as they are
        dataset = self.dataset if is_fixed else self.dataset.reshard()
        while self._start.epoch <= last_epoch:
            rows = self._rows(dataset, worker, workers)
            while window := list(islice(rows, self.shuffle_buffer_size)):
                rng = np.random.default_rng([self.seed, worker, self._start.window])
                for index in rng.permutation(len(window))[self._taken :]:
                    self._taken += 1
                    yield window[index][0]
                self._start, self._taken = replace(window[-1][1], window=self._start.window + 1), 0
            if not self._start.seen and self.minimum:
                raise StreamError(self._no_images(worker, workers))
            if self._start.seen < self.minimum:
                raise StreamError(
                    f"{self.source.path!r} has only {self._start.seen} images in a pass for worker {worker + 1} of {workers}, "
                    f"but a batch needs {self.minimum}. Use a smaller batch, fewer processes or workers, or more images."
                )
            self._start = Position(self._start.epoch + 1, window=self._start.window)

    def _no_images(self, worker: int, workers: int) -> str:
        source, of_classes = self.source, f" of data.classes={self.source.classes!r}" if self.source.classes else ""
        described = f": {self.dataset.summary()}" if isinstance(self.dataset, LocalDataset) else ""
        where = f"for worker {worker + 1} of {workers}; use fewer processes or workers" if workers > 1 else "in it"
        return f"data.path={source.path!r} (split {source.split or 'train'!r}) has no images{of_classes} {where}{described}"

    def _remaining(self, worker: int, workers: int) -> Iterator[EncodedImage]:
        """This worker's unread images of others: all of some workers, or every n-th image of one."""
        unread, states = self._resharded, self._resharded["states"]
        group, groups, offset, stride = group_of(worker, workers, len(states))
        for number in range(group, len(states), groups)[unread["finished"] :]:
            other = copy(self)
            other.minimum = 0  # its images can be fewer than a batch of this worker, which has those of others too
            other.load_state_dict(states[number])
            for image in other._images(number, len(states), last_epoch=self._start.epoch - 1):
                states[number] = other.state_dict()
                unread["count"] += 1
                if unread["count"] % stride == offset:
                    yield image
            unread["finished"] += 1

    def _rows(self, dataset, worker: int, workers: int) -> Iterator[tuple[EncodedImage, Position]]:
        """The rest of this worker's epoch in the order of the files; each image with the position after it."""
        start = self._start
        group, groups, offset, stride = group_of(worker, workers, dataset.num_shards)
        order = np.random.default_rng([self.seed, start.epoch]).permutation(dataset.num_shards)[group::groups]
        seen = start.seen
        for position, number in enumerate(order[start.shard :].tolist(), start.shard):
            for row, cells in read_shard(dataset, number, start.row if position == start.shard else 0, self.source):
                if row % stride == offset and self._is_chosen(number, row, cells):
                    seen, image = seen + 1, cells["image"]
                    name = (image or {}).get("path") or f"row {row} of shard {number} of {self.source.path}"
                    data, label = image_bytes(image, self.source), cells.get(self.source.label_column)
                    encoded = EncodedImage(data, name, start.epoch, number, row, label)
                    yield encoded, Position(start.epoch, position, row + 1, seen)

    def _is_chosen(self, shard: int, row: int, cells: Mapping) -> bool:
        if self.positions is not None and (shard, row) not in self.positions:
            return False
        label = cells.get(self.source.label_column)
        return self.chosen is None or (isinstance(label, Hashable) and label in self.chosen)
