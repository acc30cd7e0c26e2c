"""Which kind of data a path of this machine holds: a folder of images, tar shards, a saved dataset or tables."""

from pathlib import Path
from posixpath import exists, expanduser, isabs, isdir, isfile, join, splitext
from typing import TYPE_CHECKING

import datasets

from hssl_hf.data.decode import FORMATS
from hssl_hf.data.errors import StreamError
from hssl_hf.data.image_folder import ImageFolder, Listing, list_images
from hssl_hf.data.local_dataset import LocalDataset
from hssl_hf.data.plain_paths import plain_path
from hssl_hf.data.splits import EVERYTHING, select_split
from hssl_hf.data.tar_shards import TarShards
from hssl_hf.errors import reading

if TYPE_CHECKING:
    from hssl_hf.data.source import Source

TAR = ".tar"
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}  # by their first bytes
TABLES = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".jsonl": "json"}  # and their builders in `datasets`
EXPECTED = f"a Hub dataset id, a folder of images, parquet files or tar shards, or one such file ({TAR}, {', '.join(TABLES)})"


def open_local(source: "Source", label_column: str | None) -> LocalDataset | datasets.Dataset | None:
    """Open what is on this machine; None for tables and Hub datasets, which `datasets` opens.

    A folder is one of images if it holds more image files than shards and tables.

    Args:
        label_column: the column of labels, if it is wanted.
    Raises:
        StreamError: if there is nothing, no images, or no such split.
    """
    path = expanduser(source.path)
    if isdir(path):
        return _open_folder(path, source, label_column)
    suffix = Path(path).suffix.lower()
    if isfile(path) and suffix == TAR:
        _require_uncompressed([path])
        return TarShards([path], source.image_column, label_column)
    if isfile(path) and suffix not in TABLES:
        raise StreamError(f"data.path={source.path!r} is a file of another kind. Expected {EXPECTED}")
    if not exists(path) and (isabs(path) or source.path.startswith(".") or suffix in (TAR, *TABLES)):
        raise StreamError(f"data.path={source.path!r} does not exist. Expected {EXPECTED}")
    return None


def _open_folder(path: str, source: "Source", label_column: str | None) -> LocalDataset | datasets.Dataset | None:
    if isfile(join(path, "dataset_dict.json")) or isfile(join(path, "state.json")):
        return _open_saved(path, source)
    listing = list_images(path, (TAR, *TABLES))
    images, tars = sum(map(len, listing.folders)), len(listing.others[TAR])
    tables = sum(len(names) for suffix, names in listing.others.items() if suffix in (".parquet", ".arrow"))
    if images > tars + tables:
        return ImageFolder(listing, source.split, label_column)
    if tars > tables:
        return _open_tars(listing, images, source, label_column)
    if tables or (source.image_column and any(listing.others.values())):
        return None
    raise StreamError(
        f"data.path={source.path!r} holds no images that can be read: "
        + (f"it has {listing.left_out}" if listing.left_out else "it is empty")
        + f". Expected images ({', '.join(FORMATS)}), parquet files or tar shards; convert other formats and unpack archives."
    )


def _open_tars(listing: Listing, images: int, source: "Source", label_column: str | None) -> TarShards:
    names = sorted(listing.others[TAR])
    selection = select_split([tuple(name.removesuffix(TAR).split("/")) for name in names], source.split, source.path)
    left_out = listing.left_out.without(TAR)
    if images:
        left_out.add(f"image file{'s' * (images > 1)} beside the shards", listing.folders[0].path(0), images)
    paths = [join(listing.root, names[index]) for index in selection.indices]
    _require_uncompressed(paths)
    return TarShards(paths, source.image_column, label_column, selection.reading, left_out)


def _require_uncompressed(paths: list[str]) -> None:
    """Raise a StreamError for tar files that are compressed, whatever they are called."""
    for path in paths:
        with reading(path), Path(path).open("rb") as file:
            start = file.read(6)
        if kind := next((kind for magic, kind in COMPRESSED.items() if start.startswith(magic)), None):
            raise StreamError(f"{path} is compressed by {kind}; expected a plain tar file: decompress it, and name the result")


def _open_saved(path: str, source: "Source") -> datasets.Dataset:
    """A folder that `save_to_disk` wrote."""
    try:
        saved = datasets.load_from_disk(plain_path(path))
    except Exception as error:  # of datasets and pyarrow, about any content
        raise StreamError(f"cannot open data.path={source.path!r}, a dataset that save_to_disk wrote: {error}") from error
    if isinstance(saved, datasets.DatasetDict):
        splits = list(saved.values()) if source.split == EVERYTHING else [saved.get(source.split or "train")]
        if None in splits:
            raise StreamError(f"{source.path!r} has no split {source.split or 'train'!r}; it has {', '.join(saved)}")
        return datasets.concatenate_datasets(splits)
    if source.split not in (None, EVERYTHING, "train", str(saved.split)):
        raise StreamError(f"{source.path!r} holds one split ({saved.split or 'without a name'}), not {source.split!r}")
    return saved


def table_files(path: str, split: str | None) -> list[str]:
    """The tables of a split in a folder: all of the kind of which there are most.

    Raises:
        StreamError: if there is no such split.
    """
    names = sorted(max(list_images(path, list(TABLES)).others.values(), key=len))
    selection = select_split([tuple(splitext(name)[0].split("/")) for name in names], split, path)
    return [join(path, names[index]) for index in selection.indices]
