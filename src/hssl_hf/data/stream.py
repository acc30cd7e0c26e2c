"""The image stream: any dataset of images -> endless encoded images, split by process and worker, exactly resumable.

The inputs are Hub repositories, folders of images, parquet files or tar shards; the outputs `EncodedImage`s. Images are not
decoded here: bytes are cheap to shuffle and to skip. An epoch is a permutation of the shards, distributed over the workers, and
a worker shuffles windows of rows. The order follows from (seed, epoch, worker, window), so that a position is four integers.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from time import sleep
from typing import NamedTuple

import datasets
import numpy as np
import torch
from torch.utils.data import get_worker_info

from hssl_hf.data.source import Source, StreamError, image_bytes, load_source, resolve_classes

READ_ROWS = 64  # rows per read; ours: large enough to be cheap, small next to a window
REOPEN_ATTEMPTS = 5
SKIPPED = object()  # a row of a class that is not used


class EncodedImage(NamedTuple):
    """One image as it is in its file: its bytes, a name for messages, and the pass over the data it belongs to."""

    data: bytes
    name: str
    epoch: int


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


@dataclass
class ReshardedState:
    """The unread images of another number of workers.

    Args:
        states: the position of each of them.
        finished: how many of those assigned to this worker are read to their end.
        count: images read so far, of which this worker takes every n-th.
    """

    states: list[dict]
    finished: int = 0
    count: int = 0


def _furthest(states: Sequence[Mapping]) -> int:
    """The furthest epoch that any worker, or one that it continues, has begun."""
    epochs = [state["start"]["epoch"] - (1 if state.get("resharded") else 0) for state in states]
    return max(epochs)


class ImageStream(torch.utils.data.IterableDataset):
    """An endless stream of encoded images; each worker of each process reads its own part.

    Within an epoch no two workers see the same image: each has its own shards if there are enough; otherwise several
    workers share a shard and take every n-th row.

    Args:
        source: of the images.
        seed: seed of the order.
        rank, world_size: index and number of processes; the number of workers is that of the `DataLoader`.
        shuffle_buffer_size: rows that are shuffled together; 1 keeps the order of the files.
        minimum: fewest images of a worker in a pass, so that a batch is never larger than a pass.
        backoff_seconds: pause before the first reconnection; doubles each time.
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
        backoff_seconds: float = 1.0,
    ):
        if not 0 <= rank < world_size:
            raise ValueError(f"expected 0 <= rank < world_size, got rank {rank} and world_size {world_size}")
        self.source, self.seed, self.shuffle_buffer_size, self.minimum = source, seed, shuffle_buffer_size, minimum
        self.rank, self.world_size, self.backoff_seconds = rank, world_size, backoff_seconds
        self.dataset = load_source(source, also=[source.label_column] if source.classes else [])
        self.chosen = resolve_classes(source, self.dataset)
        self.reopen_attempts = 0 if Path(source.path).expanduser().exists() else REOPEN_ATTEMPTS
        self._start, self._taken, self._resharded = Position(), 0, None

    def state_dict(self) -> dict:
        """Position of the next image: its window, how many images of it are taken, and what other workers left unread."""
        resharded = None if self._resharded is None else asdict(self._resharded)
        return {"start": asdict(self._start), "taken": self._taken, "resharded": resharded}

    def load_state_dict(self, state: Mapping) -> None:
        self._start, self._taken = Position(**state["start"]), state["taken"]
        self._resharded = None if state.get("resharded") is None else ReshardedState(**deepcopy(state["resharded"]))

    def reshard_from(self, states: Sequence[Mapping]) -> None:
        """Continue where another number of workers stopped: no image is lost or repeated.

        Every worker takes a part of the unread images of the furthest epoch that any of them had begun.

        Args:
            states: `state_dict` of all of them, in order.
        """
        window = 1 + max(state["start"]["window"] for state in states)
        self._start, self._taken = Position(1 + _furthest(states), window=window), 0
        self._resharded = ReshardedState(deepcopy(list(states)))

    def __iter__(self) -> Iterator[EncodedImage]:
        worker = get_worker_info()
        workers, worker_id = (worker.num_workers, worker.id) if worker else (1, 0)
        yield from self._images(self.rank * workers + worker_id, self.world_size * workers)

    def _images(self, worker: int, workers: int, last_epoch: float = math.inf) -> Iterator[EncodedImage]:
        if self._resharded is not None:
            yield from self._remaining(worker, workers)
            self._resharded = None
        dataset = self.dataset if self.dataset.num_shards >= workers else self.dataset.reshard()
        while self._start.epoch <= last_epoch:
            rows = self._rows(dataset, worker, workers)
            while window := list(islice(rows, self.shuffle_buffer_size)):
                rng = np.random.default_rng([self.seed, worker, self._start.window])
                for index in rng.permutation(len(window))[self._taken :]:
                    self._taken += 1
                    yield window[index][0]
                self._start, self._taken = replace(window[-1][1], window=self._start.window + 1), 0
            if self._start.seen < self.minimum:
                raise StreamError(
                    f"{self.source.path!r} has only {self._start.seen} images in a pass for worker {worker + 1} of {workers}, "
                    f"but a batch needs {self.minimum}. Use a smaller batch, fewer processes or workers, or more images."
                )
            self._start = Position(self._start.epoch + 1, window=self._start.window)

    def _remaining(self, worker: int, workers: int) -> Iterator[EncodedImage]:
        """This worker's part of the unread images of others: all of some workers, or every n-th image of one."""
        left = self._resharded
        groups = max(n for n in range(1, workers + 1) if workers % n == 0 and n <= len(left.states))
        stride, offset = workers // groups, worker // groups
        last = self._start.epoch - 1
        assigned = range(worker % groups, len(left.states), groups)
        while left.finished < len(assigned):
            other = copy(self)
            other.load_state_dict(left.states[assigned[left.finished]])
            for image in other._images(assigned[left.finished], len(left.states), last):
                left.states[assigned[left.finished]], left.count = other.state_dict(), left.count + 1
                if left.count % stride == offset:
                    yield image
            left.finished += 1

    def _rows(self, dataset, worker: int, workers: int) -> Iterator[tuple[EncodedImage, Position]]:
        """The rest of this worker's epoch in the order of the files; each image with the position after it."""
        start = self._start
        groups = max(n for n in range(1, workers + 1) if workers % n == 0 and n <= dataset.num_shards)
        stride, offset = workers // groups, worker // groups
        order = np.random.default_rng([self.seed, start.epoch]).permutation(dataset.num_shards)[worker % groups :: groups]
        seen = start.seen
        for place in range(start.shard, len(order)):
            number = int(order[place])
            shard = dataset.shard(num_shards=dataset.num_shards, index=number)
            for row, image in self._read(shard, start.row if place == start.shard else 0, number):
                if image is not SKIPPED and row % stride == offset:
                    seen += 1
                    name = (image or {}).get("path") or f"row {row} of shard {number} of {self.source.path}"
                    encoded = EncodedImage(image_bytes(image), name, start.epoch)
                    yield encoded, Position(start.epoch, place, row + 1, seen)

    def _of_chosen_classes(self, batch: dict) -> list:
        """The images of a batch, with `SKIPPED` in the place of those of other classes."""
        if self.chosen is None:
            return batch["image"]
        labels = batch[self.source.label_column]
        return [image if label in self.chosen else SKIPPED for image, label in zip(batch["image"], labels, strict=True)]

    def _read(self, shard: datasets.IterableDataset, first: int, number: int) -> Iterator[tuple[int, dict]]:
        """Rows of one shard from `first` on; a broken connection is reopened at the same row."""
        row, attempts = first, 0
        while True:
            try:
                for batch in (shard.skip(row) if row else shard).iter(batch_size=READ_ROWS):
                    for image in self._of_chosen_classes(batch):
                        yield row, image
                        row, attempts = row + 1, 0
                return
            except OSError as error:
                attempts += 1
                if attempts > self.reopen_attempts:
                    raise StreamError(
                        f"shard {number} of {self.source.path!r} could not be read at row {row} in {attempts} attempts: {error}"
                    ) from error
                warnings.warn(f"reading shard {number} of {self.source.path!r} again from row {row}: {error}", stacklevel=2)
                sleep(self.backoff_seconds * 2 ** (attempts - 1))
            except (ValueError, RuntimeError) as error:
                raise StreamError(f"shard {number} of {self.source.path!r} is damaged near row {row}: {error}") from error
