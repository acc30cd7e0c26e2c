"""What folders of images and tar shards have in common: rows in shards, read as streams read those of `datasets`."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from itertools import islice
from pathlib import Path, PurePath

import datasets

EDGE = 2**16
EDGES_BELOW = 10_000  # files; of more, names and sizes alone make the fingerprint


class LocalDataset(ABC):
    """Rows {"image": {"bytes", "path"}, column: value} in shards, with the methods of `datasets.IterableDataset` that we need.

    Args:
        shards: one value per shard, from which `read` makes its rows.
        features: by column; the images are not decoded.

    Attributes:
        declared: number of samples that a repository declares; None where images are counted instead.
    """

    declared: int | None = None

    def __init__(self, shards: Sequence, features: datasets.Features):
        self.shards, self.features, self._first = shards, features, 0

    @abstractmethod
    def read(self, shard, first: int) -> Iterator[dict]:
        """Rows of a shard, from the one with the number `first` on."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def summary(self) -> str:
        """What was read and what was left out, in a line for the user."""

    def lost_images(self) -> int:
        """About how many images are lost in damaged parts of files on this machine."""
        return 0

    @abstractmethod
    def fingerprint(self) -> str:
        """Of names below the folder and contents: the same after the folder has moved."""

    @property
    def num_shards(self) -> int:
        return len(self.shards)

    def shard(self, num_shards: int, index: int) -> "LocalDataset":
        part = copy(self)
        part.shards = self.shards[index::num_shards]
        return part

    def skip(self, n: int) -> "LocalDataset":
        """Leave out the first n rows of the first shard."""
        rest = copy(self)
        rest._first = n
        return rest

    def reshard(self) -> "LocalDataset":
        return self

    def __iter__(self) -> Iterator[dict]:
        for number, shard in enumerate(self.shards):
            yield from self.read(shard, 0 if number else self._first)

    def iter(self, batch_size: int) -> Iterator[dict[str, list]]:
        rows = iter(self)
        while batch := list(islice(rows, batch_size)):
            yield {name: [row[name] for row in batch] for name in batch[0]}


class LeftOut:
    """Files that are not read, by the reason, with some of their names."""

    EXAMPLES, REASONS = 3, 12  # that are shown

    def __init__(self):
        self.examples: dict[str, list[str]] = defaultdict(list)
        self.counts: Counter[str] = Counter()

    def add(self, reason: str, name: str, count: int = 1) -> None:
        self.counts[reason] += count
        if len(self.examples[reason]) < self.EXAMPLES:
            self.examples[reason].append(printable(name, 40))

    def add_file(self, name: str) -> None:
        """A file that is no image, counted by its suffix."""
        self.add(PurePath(name).suffix.lower() or "without a suffix", name)

    def merge(self, other: "LeftOut") -> None:
        for reason, count in other.counts.items():
            self.counts[reason] += count
            self.examples[reason] = (self.examples[reason] + other.examples[reason])[: self.EXAMPLES]

    def without(self, reason: str) -> "LeftOut":
        others = LeftOut()
        others.counts |= {key: count for key, count in self.counts.items() if key != reason}
        others.examples |= self.examples
        return others

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        """Such as "12 .heic (a.heic, b.heic, c.heic, ...), 3 .npy (d.npy, e.npy, f.npy)"; empty for none."""
        by_count = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        shown = [f"{count} {reason} ({self._names(reason)})" for reason, count in by_count[: self.REASONS]]
        rest = sum(count for _, count in by_count[self.REASONS :])
        return ", ".join([*shown, *([f"{rest} others"] if rest else [])])

    def _names(self, reason: str) -> str:
        return ", ".join(self.examples[reason]) + (", ..." if self.counts[reason] > self.EXAMPLES else "")


def printable(name: str, limit: int = 80) -> str:
    """A name for a message: one line, of characters that can be encoded, not longer than `limit`."""
    text = "".join(c if c.isprintable() else f"\\x{ord(c) & 0xFF:02x}" for c in name)
    return text if len(text) <= limit else f"...{text[3 - limit :]}"


def fingerprint_of_files(files: Iterable[tuple[str, str]], count: int) -> str:
    """Fingerprint of files, from their names, sizes and, if they are few, the first and last `EDGE` bytes of each.

    Args:
        files: name that counts, and path.
        count: number of files.
    """
    digest = hashlib.sha256()
    for name, location in files:
        digest.update(name.encode("utf-8", "surrogateescape"))
        with suppress(OSError):  # on another machine, or removed since
            size = os.stat(location).st_size  # noqa: PTH116 - a `Path` for each of a million files takes longer than asking
            digest.update(str(size).encode())
            if count < EDGES_BELOW:
                with Path(location).open("rb") as file:
                    digest.update(file.read(EDGE))
                    file.seek(max(0, size - EDGE))
                    digest.update(file.read(EDGE))
    return digest.hexdigest()[:16]
