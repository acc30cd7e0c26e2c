"""What `metadata.csv`, `.jsonl` and `.parquet` in a folder of images hold about its files, by their column `file_name`."""

from collections.abc import Iterator
from posixpath import basename, dirname, exists, join, normpath
from typing import TYPE_CHECKING

import datasets

from hssl_hf.data.errors import StreamError
from hssl_hf.data.local_dataset import LeftOut
from hssl_hf.data.plain_paths import plain_path
from hssl_hf.errors import reading

if TYPE_CHECKING:
    from hssl_hf.data.image_folder import Listing

BUILDERS = {"metadata.csv": "csv", "metadata.jsonl": "json", "metadata.parquet": "parquet"}  # in `datasets`
FILE, ROWS = "file_name", 1000  # column, and rows per read


def read_metadata(listing: "Listing", column: str) -> dict[str, object]:
    """Values of a column, by path below the root; empty where there are none.

    Args:
        listing: with the names of csv, jsonl and parquet files among its `others`.
    Raises:
        StreamError: if a file cannot be read.
    """
    return {path: value for name in _files(listing) for path, value in _entries(listing, name, column)}


def missing_files(listing: "Listing") -> LeftOut:
    """Entries whose files do not exist, and metadata that cannot be read."""
    missing, names = LeftOut(), _files(listing)
    images = {folder.path(index) for folder in listing.folders for index in range(len(folder))} if names else ()
    for name in names:
        try:
            for path, _ in _entries(listing, name, FILE):
                if path not in images and not exists(join(listing.root, path)):
                    missing.add(f"entries of {name} without a file", path)
        except StreamError:
            missing.add("files of metadata that cannot be read", name)
    return missing


def _files(listing: "Listing") -> list[str]:
    return [name for names in listing.others.values() for name in names if basename(name) in BUILDERS]


def _entries(listing: "Listing", name: str, column: str) -> Iterator[tuple[str, object]]:
    """Path below the root and value of a column, of every row that has both; raises a StreamError as `read_metadata`."""
    file = join(listing.root, name)
    with reading(file, "expected a table with a column file_name; correct or remove it", StreamError):
        rows = datasets.load_dataset(BUILDERS[basename(name)], data_files=plain_path(file), split="train", streaming=True)
        for batch in rows.iter(batch_size=ROWS):
            if FILE in batch and column in batch:
                for path, value in zip(batch[FILE], batch[column], strict=True):
                    if path is not None:
                        yield normpath(join(dirname(name), str(path))), value
