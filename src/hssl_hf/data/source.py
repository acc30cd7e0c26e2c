"""Where images come from: Hub repositories, folders of images, parquet files and tar shards, opened lazily."""

import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import datasets
import fsspec
from timm.data import ImageNetInfo

from hssl_hf.errors import UserError

MAP_STYLE_SHARDS = 128
STALL_SECONDS = 60  # without a byte, after which a web server is tried again; ours: minutes are the libraries' own
EDGE = 2**16
SUFFIXES = {".parquet": "parquet", ".tar": "webdataset"}


class StreamError(UserError):
    """The data cannot be used as configured; the message holds what was expected, what came and what to do."""


@dataclass(frozen=True)
class Source:
    """Where the images are.

    Args:
        path: Hub dataset id, folder (of images, parquet files or tar shards), a single parquet or tar file, or the URL of
            such files, with a range such as https://host/train-{000..127}.tar for many.
        name: configuration of a Hub dataset.
        split: split to read.
        revision: revision of a Hub dataset.
        image_column: column with the images; None takes the only column of type `Image` (of a tar shard: its image file).
        streaming: read while training (True) or fetch everything to the local cache first (False).
        classes: file of class names; images of other classes are passed over. None for all.
        label_column: where the classes are.
    """

    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    image_column: str | None = None
    streaming: bool = True
    classes: str | None = None
    label_column: str = "label"


def load_source(source: Source, also: Sequence[str] = ()) -> datasets.IterableDataset:
    """Open a source lazily, keep only its column of images (renamed to `image`) and leave the images encoded.

    Args:
        source: where the images are.
        also: further columns to keep, such as labels.
    Raises:
        StreamError: if there is no such dataset, split or column.
    """
    try:
        dataset = datasets.load_dataset(
            **_location(source), name=source.name, split=source.split, revision=source.revision, streaming=source.streaming
        )
    except (OSError, ValueError) as error:
        raise StreamError(
            f"cannot open data.path={source.path!r} (split {source.split!r}, configuration {source.name!r}): {error}\n"
            "Expected a Hub dataset id, a folder of images, parquet or tar files, or one such file."
        ) from error
    if not source.streaming:
        dataset = dataset.to_iterable_dataset(num_shards=max(1, min(MAP_STYLE_SHARDS, len(dataset))))
    column = _image_column(dataset, source)
    features = datasets.Features({**(dataset.features or {}), column: datasets.Image(decode=False)})
    dataset = dataset.cast(features) if dataset.features is None else dataset.cast_column(column, features[column])
    for name in also:
        if dataset.features is not None and name not in dataset.features:
            raise StreamError(f"{source.path!r} has no column {name!r}; it has {sorted(dataset.features)}")
    dataset = dataset.select_columns([column, *also])
    return dataset if column == "image" else dataset.rename_column(column, "image")


def _location(source: Source) -> dict:
    if "://" in source.path:
        suffix = Path(source.path).suffix
        if suffix not in SUFFIXES:
            raise StreamError(f"data.path={source.path!r}: expected a URL of parquet files or tar shards (.parquet, .tar)")
        patience = aiohttp.ClientTimeout(total=None, sock_connect=STALL_SECONDS, sock_read=STALL_SECONDS)
        options = {protocol: {"client_kwargs": {"timeout": patience}} for protocol in ("http", "https")}
        files = {source.split: expand_braces(source.path)}
        return {"path": SUFFIXES[suffix], "data_files": files, "storage_options": options}
    path = Path(source.path).expanduser()
    if path.is_file() and path.suffix in SUFFIXES:
        return {"path": SUFFIXES[path.suffix], "data_files": {source.split: str(path)}}
    if path.is_dir():
        if any(path.rglob("*.tar")):
            pattern = f"**/{source.split}*.tar" if any(path.rglob(f"{source.split}*.tar")) else "**/*.tar"
            return {"path": "webdataset", "data_files": {source.split: str(path / pattern)}}
        if not any(path.rglob("*.parquet")):
            return {"path": "imagefolder", "data_dir": str(path), "drop_labels": False}
        return {"path": str(path)}
    if path.is_absolute() or source.path.startswith("."):
        raise StreamError(f"data.path={source.path!r} does not exist. Expected a folder, a parquet file or a tar file.")
    return {"path": source.path}


def expand_braces(url: str) -> list[str]:
    """A URL with a range such as train-{000..127}.tar -> one URL per number, with as many digits."""
    head, *numbers_and_tail = re.split(r"\{(\d+)\.\.(\d+)\}", url, maxsplit=1)
    if not numbers_and_tail:
        return [url]
    first, last, tail = numbers_and_tail
    numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return [head + number + rest for number in numbers for rest in expand_braces(tail)]


def _image_column(dataset: datasets.IterableDataset, source: Source) -> str:
    features = dataset.features or {}
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if source.image_column is None:
        if len(images) == 1:
            return images[0]
        raise StreamError(
            f"{source.path!r} has {len(images)} image columns ({', '.join(images) or 'none'}) among {sorted(features)}; "
            "name the one to use with data.image_column=..."
        )
    if features and source.image_column not in features:
        near = difflib.get_close_matches(source.image_column, features, n=1)
        raise StreamError(
            f"{source.path!r} has no column {source.image_column!r}; it has {sorted(features)}."
            + (f" Did you mean data.image_column={near[0]}?" if near else "")
        )
    return source.image_column


def count_images(source: Source) -> int:
    """Number of images in a source: from its metadata, else by one pass over local files.

    Raises:
        StreamError: if the metadata does not hold it and the files are not on this machine.
    """
    dataset = load_source(source, also=[source.label_column] if source.classes else [])
    splits, chosen = dataset.info.splits or {}, resolve_classes(source, dataset)
    if chosen is None and source.split in splits and splits[source.split].num_examples:
        return splits[source.split].num_examples
    if not Path(source.path).expanduser().exists() and source.streaming:
        raise StreamError(f"{source.path!r} does not hold how many images it has; set it with data.images_per_epoch=...")
    rows = dataset.iter(batch_size=1024)
    if chosen is None:
        return sum(len(batch["image"]) for batch in rows)
    return sum(label in chosen for batch in rows for label in batch[source.label_column])


def resolve_classes(source: Source, dataset: datasets.IterableDataset) -> set[int] | None:
    """Labels of the classes that a source is limited to; None for no limit.

    Classes are matched by their names in the dataset, or, if they are WordNet ids and the dataset has ImageNet's thousand
    classes under other names, by their position in ImageNet.

    Raises:
        StreamError: if the file cannot be read, or the dataset does not have these classes.
    """
    if source.classes is None:
        return None
    try:
        names = Path(source.classes).read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise StreamError(f"cannot read data.classes={source.classes!r}: {error}") from error
    known = getattr((dataset.features or {}).get(source.label_column), "names", None) or []
    for order in (known, ImageNetInfo("imagenet-1k").label_names() if len(known) in (0, 1000) else []):
        if names and set(names) <= set(order):
            return {order.index(name) for name in names}
    missing = sorted(set(names) - set(known))
    raise StreamError(
        f"{source.path!r} lacks classes that {source.classes} names: {', '.join(missing[:5]) or 'the file is empty'}; "
        f"it has {len(known)} classes in its column {source.label_column!r}"
    )


def dataset_fingerprint(source: Source) -> dict[str, str | None]:
    """Which data these are: the Hub's commit, and a fingerprint of the files.

    The fingerprint is over their names, and for files on this machine over sizes and the first and last `EDGE` bytes, so that
    another version of the data has another one and no terabyte is read.

    Raises:
        StreamError: if the source cannot be opened.
    """
    try:
        builder = datasets.load_dataset_builder(**_location(source), name=source.name, revision=source.revision)
    except (OSError, ValueError) as error:
        raise StreamError(f"cannot open {source.path!r}: {error}") from error
    files = builder.config.data_files or {}
    chosen = [files[source.split]] if source.split in files else files.values()
    names = sorted(str(name) for split in chosen for name in split)
    digest = hashlib.sha256()
    for name in names:
        path = Path(name)
        digest.update(path.name.encode())
        if path.is_file():
            size = path.stat().st_size
            digest.update(str(size).encode())
            if len(names) < 10_000:
                with path.open("rb") as file:
                    digest.update(file.read(EDGE))
                    file.seek(max(0, size - EDGE))
                    digest.update(file.read(EDGE))
    revision = re.search(r"^hf://datasets/[^@]+@([0-9a-f]{40})", names[0]) if names else None
    return {"revision": revision and revision.group(1), "fingerprint": digest.hexdigest()[:16]}


def image_bytes(image: Mapping | None) -> bytes:
    """Bytes of a cell of type `Image(decode=False)`; empty for an empty cell or a missing file, which decoders reject."""
    image = image or {}
    if image.get("bytes") is None and image.get("path") is not None:
        with suppress(FileNotFoundError), fsspec.open(image["path"], "rb") as file:
            return file.read()
    return image.get("bytes") or b""
