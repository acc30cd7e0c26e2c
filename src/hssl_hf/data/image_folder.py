"""Folders of images on this machine: every image is read, whatever files and folders are called.

Nothing is inferred from names but splits (`splits.py`) and, where labels are wanted, classes. Links to folders are followed.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from posixpath import abspath, basename, dirname, expanduser, join, realpath, splitext

import datasets
import numpy as np

from hssl_hf.data.decode import SUFFIXES, is_image
from hssl_hf.data.errors import StreamError
from hssl_hf.data.local_dataset import LeftOut, LocalDataset, fingerprint_of_files, printable
from hssl_hf.data.metadata import missing_files, read_metadata
from hssl_hf.data.splits import select_split

SHARDS = 128
APPLE_DOUBLE = "._"  # macOS keeps attributes of x.jpg in ._x.jpg on other file systems
VERSION_CONTROL = ".git"  # which may hold every image a second time
OTHER_SUFFIXES = frozenset((  # of files that are no images, which need not be opened to know it
    ".arrow", ".avi", ".bin", ".cls", ".csv", ".db", ".gz", ".h5", ".hdf5", ".heic", ".heif", ".html", ".ini", ".json",
    ".jsonl", ".lock", ".log", ".mat", ".md", ".mkv", ".mov", ".mp4", ".npy", ".npz", ".parquet", ".pdf", ".pickle", ".pkl",
    ".pt", ".pth", ".py", ".rar", ".safetensors", ".sh", ".svg", ".tar", ".tgz", ".toml", ".tsv", ".txt", ".wav", ".xml",
    ".xz", ".yaml", ".yml", ".zip",
))  # fmt: skip


@dataclass(frozen=True)
class Folder:
    """A folder with images.

    Args:
        name: below the root; empty for the root itself.
        files: encoded names, one after another, of which a million take no more memory than their letters.
        ends: (n,) where each of them ends.
    """

    name: str
    files: bytes
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def file(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.files[start : self.ends[index]])

    def path(self, index: int) -> str:
        """Below the root."""
        return join(self.name, self.file(index))


@dataclass(frozen=True)
class Listing:
    """What is in a folder.

    Args:
        root: path of the folder, absolute.
        folders: those with images, by name.
        left_out: everything else.
        others: names of files of the kinds that `list_images` was given, by suffix.
    """

    root: str
    folders: list[Folder]
    left_out: LeftOut
    others: dict[str, list[str]]


def list_images(root: str | Path, others: Sequence[str] = ()) -> Listing:
    """List a folder and those below it, each of them once, also where several links lead to it.

    A link to a folder that is already listed, or around the root, is left out and named, as are broken links, folders that
    cannot be read, and files that are no images. Whether a file is an image is decided by its suffix; files with an unknown
    one, or none, are opened.

    Args:
        others: suffixes of other files whose names are wanted.
    """
    root = abspath(expanduser(root))
    listing = Listing(root, [], LeftOut(), {suffix: [] for suffix in others})
    ancestors, real = set(), realpath(root)
    while real not in ancestors:
        ancestors.add(real)
        real = dirname(real)
    seen, folders, links = set(), [""], []
    while folders or links:
        name, is_link = (folders.pop(), False) if folders else (links.pop(0), True)  # folders first: a link never hides one
        real = realpath(join(root, name))
        if real in seen or (is_link and real in ancestors):
            listing.left_out.add("links to a folder that is read already", name)
            continue
        seen.add(real)
        below, links_below = _list_folder(listing, name)
        folders += reversed(below)
        links += links_below
    listing.folders.sort(key=lambda folder: folder.name)
    return listing


def _list_folder(listing: Listing, name: str) -> tuple[list[str], list[str]]:
    """Add the images of one folder to the listing; returns the folders below it, and links to folders."""
    folders, links, files = [], [], []
    try:
        with os.scandir(join(listing.root, name)) as entries:
            for entry in entries:
                if entry.name == VERSION_CONTROL:
                    listing.left_out.add("folders of git", join(name, entry.name))
                elif entry.is_dir():
                    (links if entry.is_symlink() else folders).append(join(name, entry.name))
                elif entry.is_file():
                    files.append(entry.name)
                else:
                    kind = "broken links" if entry.is_symlink() else "special files"
                    listing.left_out.add(kind, join(name, entry.name))
    except OSError as error:
        listing.left_out.add(f"folders that cannot be read: {error.strerror}", name or ".")
    images = [os.fsencode(file) for file in sorted(files) if _is_image(listing, join(name, file))]
    if images:
        ends = np.cumsum([len(file) for file in images], dtype=np.int64)
        listing.folders.append(Folder(name, b"".join(images), ends))
    return sorted(folders), sorted(links)


def _is_image(listing: Listing, name: str) -> bool:
    file = basename(name)
    suffix = splitext(file)[1].lower()
    if not file.startswith(APPLE_DOUBLE):
        if suffix in SUFFIXES:
            return True
        if suffix in listing.others:
            listing.others[suffix].append(name)
        elif suffix not in OTHER_SUFFIXES and is_image(join(listing.root, name)):
            return True
    listing.left_out.add_file(name)
    return False


class ImageFolder(LocalDataset):
    """The images of a folder, or of a split of it, in a fixed order in which its folders are mixed.

    The order is mixed so that neither the images that are shuffled together nor the first n are all of one class.

    Args:
        listing: of the folder.
        split: as in `select_split`.
        label_column: where it is wanted, it has the labels: those that the folder's metadata.csv (or .jsonl, .parquet) gives
            to the column of this name, otherwise the names of the folders that hold the images.
    Raises:
        StreamError: if there is no such split, an image is in no folder of a class, or the metadata have labels
            for some images only.
    """

    def __init__(self, listing: Listing, split: str | None = None, label_column: str | None = None):
        paths = [tuple(folder.name.split("/")) if folder.name else () for folder in listing.folders]
        selection = select_split(paths, split, listing.root)
        self.listing, self.reading, self._depth = listing, selection.reading, selection.depth
        self.folders = [listing.folders[index] for index in selection.indices]
        self._starts = np.cumsum([0, *map(len, self.folders)])
        self._order = np.random.default_rng(0).permutation(len(self))
        features = datasets.Features({"image": datasets.Image(decode=False)})
        self._labels, self._label_column = None, label_column
        if label_column is not None:
            self._labels, features[label_column] = self._read_labels(label_column)
        bounds = np.linspace(0, len(self), 1 + max(1, min(SHARDS, len(self)))).astype(int).tolist()
        super().__init__(list(pairwise(bounds)), features)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, shard: tuple[int, int], first: int) -> Iterator[dict]:
        for index in self._order[shard[0] + first : shard[1]].tolist():
            row = {"image": {"bytes": None, "path": join(self.listing.root, self.path(index))}}
            if self._labels is not None:
                row[self._label_column] = self._labels[index]
            yield row

    def path(self, index: int) -> str:
        """Of an image, below the root, in the order of names."""
        folder = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.folders[folder].path(index - int(self._starts[folder]))

    def summary(self) -> str:
        left_out, elsewhere = self.listing.left_out, sum(map(len, self.listing.folders)) - len(self)
        parts = [
            f"{len(self)} images in {len(self.folders)} folders, {len(left_out)} left out"
            + (f": {left_out}" if left_out else "")
        ]
        parts += [f"{elsewhere} images of other splits"] if elsewhere else []
        missing = missing_files(self.listing)
        return "; ".join(part for part in [*parts, str(missing), self.reading] if part)

    def fingerprint(self) -> str:
        paths = (self.path(index) for index in range(len(self)))
        return fingerprint_of_files(((path, join(self.listing.root, path)) for path in paths), len(self))

    def _read_labels(self, column: str) -> tuple[Sequence, datasets.ClassLabel | datasets.Value]:
        """Labels in the order of names, and their type."""
        if values := read_metadata(self.listing, column):
            paths = [self.path(index) for index in range(len(self))]
            missing = [path for path in paths if values.get(path) is None]
            if missing:
                raise StreamError(
                    f"the metadata in {self.listing.root!r} have no {column!r} for {len(missing)} of {len(paths)} images, "
                    f"such as {printable(missing[0])!r}; add them, or evaluate on another folder"
                )
            labels = [values[path] for path in paths]
            if not all(isinstance(label, str) for label in labels):
                return labels, datasets.Value("int64")
            names = sorted({label for label in values.values() if isinstance(label, str)})
            numbers = {name: number for number, name in enumerate(names)}
            return [numbers[label] for label in labels], datasets.ClassLabel(names=names)
        return self._labels_from_folders()

    def _labels_from_folders(self) -> tuple[list[int], datasets.ClassLabel]:
        """The class of an image is the name of the folder that holds it; of all splits, so that they agree on the numbers."""
        for folder in self.folders:
            if not folder.name or folder.name.count("/") < self._depth:
                raise StreamError(
                    f"{printable(folder.path(0))!r} in {self.listing.root!r} is not in the folder of a class; to evaluate, "
                    "sort the images into one folder per class, or add a metadata.csv with the columns file_name and label"
                )
        names = sorted({basename(folder.name) for folder in self.listing.folders})
        numbers = {name: number for number, name in enumerate(names)}
        labels = [numbers[basename(folder.name)] for folder in self.folders]
        return np.repeat(labels, list(map(len, self.folders))).tolist(), datasets.ClassLabel(names=names)
