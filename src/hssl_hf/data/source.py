"""Where images come from: Hub repositories, folders of images, parquet files and tar shards, opened lazily."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow.parquet as pq

from hssl_hf.data.classes import find_classes, read_class_list
from hssl_hf.data.errors import StreamError
from hssl_hf.data.local_dataset import LeftOut, LocalDataset, fingerprint_of_files
from hssl_hf.data.local_source import EXPECTED, TABLES, TAR, open_local, table_files
from hssl_hf.data.plain_paths import ODD, plain_path
from hssl_hf.data.remote import expand_braces, web_options
from hssl_hf.data.tar_shards import TarShards
from hssl_hf.errors import shown
from hssl_hf.fields import Section

MAP_STYLE_SHARDS = 128
TEXT = ("string", "large_string")
ENCODED = (*TEXT, "binary", "large_binary")  # columns of these may hold paths or bytes of images
Dataset = datasets.IterableDataset | LocalDataset


@dataclass(frozen=True)
class Source(Section):
    """Where the images are.

    Args:
        path: Hub dataset id, folder (of images, parquet files or tar shards, or written by `save_to_disk`), a single parquet,
            tar, csv or jsonl file, or the URL of parquet or tar files, with a range such as
            https://host/train-{000..127}.tar for many.
        name: configuration of a Hub dataset.
        split: split to read; "all" for all images of a folder. None for train, and for all images of a folder that has no
            splits: names of folders are splits if all names at its top are, such as train, val2017 and train-semi.
        revision: revision of a Hub dataset.
        image_column: column with the images, or with their paths below the dataset; None takes the only column of type `Image`.
            Of tar shards, also those of the Hub: the end of the names of their images, such as jpg; None takes all images.
        streaming: read while training (True) or fetch everything to the local cache first (False).
        classes: file of class names; images of other classes are passed over. None for all. Each line holds the full name of a
            class as in the dataset, spaces included, or begins with WordNet ids (n01440764); # begins a line of comment.
        label_column: where the classes are.
        allow_remote_paths: open URLs that the dataset's own columns name.
    """

    path: str
    name: str | None = None
    split: str | None = None
    revision: str | None = None
    image_column: str | None = None
    streaming: bool = True
    classes: str | None = None
    label_column: str = "label"
    allow_remote_paths: bool = False


def load_source(source: Source, also: Sequence[str] = ()) -> Dataset:
    """Open a source lazily, keep only its column of images (renamed to `image`) and leave the images encoded.

    Args:
        source: where the images are.
        also: a further column to keep, such as labels.
    Raises:
        StreamError: if there is no such dataset, split or column.
    """
    label_column = next(iter(also), None)
    dataset = _open_here(source, label_column)
    dataset = _load_dataset(source, label_column) if dataset is None else dataset
    if isinstance(dataset, LocalDataset):
        return dataset
    if isinstance(dataset, datasets.Dataset):
        dataset = dataset.to_iterable_dataset(num_shards=max(1, min(MAP_STYLE_SHARDS, len(dataset))))
    column = _image_column(dataset, source)
    features = datasets.Features({**(dataset.features or {}), column: datasets.Image(decode=False)})
    dataset = dataset.cast(features) if dataset.features is None else dataset.cast_column(column, features[column])
    for name in also:
        if dataset.features is not None and name not in dataset.features:
            raise StreamError(f"{source.path!r} has no column {name!r}; it has {sorted(dataset.features)}")
    dataset = dataset.select_columns([column, *also])
    return dataset if column == "image" else dataset.rename_column(column, "image")


def _open_here(source: Source, label_column: str | None = None) -> LocalDataset | datasets.Dataset | None:
    """What is read by this package or from a saved dataset; None for what `load_dataset` opens."""
    if "://" not in source.path:
        return open_local(source, label_column)
    is_tar = Path(source.path).suffix == TAR
    return TarShards(_tar_urls(source), source.image_column, label_column) if is_tar else None


def _load_dataset(source: Source, label_column: str | None = None) -> Dataset | datasets.Dataset:
    """What `datasets` opens, but tar shards of the Hub, of which it drops images without a word (see `_tars_of`)."""
    split = source.split or "train"
    try:
        builder = datasets.load_dataset_builder(**_location(source), name=source.name, revision=source.revision)
        if builder.name == "webdataset":
            return _tars_of(builder, split, source, label_column)
        if not source.streaming:
            builder.download_and_prepare()
        dataset = builder.as_streaming_dataset(split=split) if source.streaming else builder.as_dataset(split=split)
        if label_column is not None and builder.name == "parquet":
            _require_own_classes(dataset, (builder.config.data_files or {}).get(split, []), source, label_column)
        return dataset
    except StreamError:
        raise
    except Exception as error:  # of pandas, pyarrow, web clients and others that read what others have written
        raise StreamError(
            f"cannot open data.path={source.path!r} (split {split!r}, configuration {source.name!r}): {_text(error)}\n"
            f"Expected {EXPECTED}"
        ) from error


def _require_own_classes(dataset: Dataset | datasets.Dataset, files: Sequence[str], source: Source, label_column: str) -> None:
    """Raise a StreamError if the files of a split number their classes in another way than `datasets` reads them."""
    if not files or not Path(files[0]).is_file():
        return
    own = datasets.Features.from_arrow_schema(pq.read_schema(files[0]))
    orders = [getattr((features or {}).get(label_column), "names", None) for features in (own, dataset.features)]
    if None not in orders and orders[0] != orders[1]:
        raise StreamError(
            f"the split {source.split or 'train'!r} of {source.path!r} numbers its classes in the order {shown(orders[0])}, "
            f"other splits of the folder in the order {shown(orders[1])}; write them with the same ClassLabel, or put each "
            "split in a folder of its own"
        )


def _tars_of(builder: datasets.DatasetBuilder, split: str, source: Source, label_column: str | None) -> TarShards:
    """The tar shards of a repository, with what its README declares.

    `datasets` would drop members without a suffix and hidden ones, take a sample without the fields of the first five for one
    without an image, and refuse a repository where these differ, as they do where names have dots.
    """
    files, declared, left_out = builder.config.data_files or {}, builder.info.splits or {}, LeftOut()
    if split not in files:
        raise StreamError(f"{source.path!r} has no split {split!r}; it has {', '.join(map(str, files))}")
    tars = [file for file in files[split] if file.endswith(TAR)]
    for other in set(files[split]) - set(tars):
        left_out.add_file(other)
    shards = TarShards(_fetched(tars, source), source.image_column, label_column, left_out=left_out)
    if source.streaming and split in declared:
        shards.declared = declared[split].num_examples
    kind = (builder.info.features or {}).get(label_column)
    if isinstance(kind, datasets.ClassLabel):
        shards.features[label_column] = kind
    return shards


def _text(error: Exception, limit: int = 1000) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]}..."


def _location(source: Source) -> dict:
    """Arguments of `load_dataset` for what it opens: Hub datasets and tables."""
    split = source.split or "train"
    if "://" in source.path:
        suffix = Path(source.path).suffix
        if suffix != ".parquet":
            raise StreamError(f"data.path={source.path!r}: expected a URL of parquet files or tar shards (.parquet, .tar)")
        return {"path": "parquet", "data_files": {split: expand_braces(source.path)}, "storage_options": web_options()}
    path = Path(source.path).expanduser()
    if path.is_file():
        return {"path": TABLES[path.suffix.lower()], "data_files": {split: plain_path(str(path))}}
    if path.is_dir() and ODD.search(str(path.absolute())):
        files = table_files(str(path), source.split)
        return {"path": TABLES[Path(files[0]).suffix.lower()], "data_files": {split: [plain_path(file) for file in files]}}
    return {"path": str(path) if path.is_dir() else source.path}


def _tar_urls(source: Source) -> list[str]:
    return _fetched(expand_braces(source.path), source)


def _fetched(urls: list[str], source: Source) -> list[str]:
    """The URLs themselves, or, if they are not to be streamed, paths of their files on this machine."""
    if source.streaming:
        return urls
    try:
        options = datasets.DownloadConfig(storage_options=web_options())
        return datasets.DownloadManager(download_config=options).download(urls)
    except (OSError, ValueError) as error:
        raise StreamError(f"cannot download data.path={source.path!r}: {error}") from error


def _image_column(dataset: datasets.IterableDataset, source: Source) -> str:
    features = dataset.features or {}
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if source.image_column is None:
        if len(images) == 1:
            return images[0]
        columns = f"{len(images)} image columns ({', '.join(images) or 'none'}) among {sorted(features)}"
        raise StreamError(
            f"{source.path!r} has {columns if features else 'columns that are known only when it is read'}; name the one to "
            "use with data.image_column=..."
        )
    if features and source.image_column not in features:
        near = difflib.get_close_matches(source.image_column, features, n=1)
        raise StreamError(
            f"{source.path!r} has no column {source.image_column!r}; it has {sorted(features)}."
            + (f" Did you mean data.image_column={near[0]}?" if near else "")
        )
    if source.image_column not in images and getattr(features.get(source.image_column), "dtype", "string") not in ENCODED:
        raise StreamError(
            f"the column {source.image_column!r} of {source.path!r} holds {features[source.image_column]}; expected images, "
            f"their bytes or their paths{f' as in {images}' if images else ''}"
        )
    return source.image_column


def count_images(source: Source, dataset: Dataset | None = None) -> int:
    """Number of images in a source: from its metadata, else by one pass over local files.

    Args:
        dataset: the opened source, if it is open already.
    Raises:
        StreamError: if the metadata does not hold it and the files are not on this machine.
    """
    if dataset is None:
        dataset = load_source(source, also=[source.label_column] if source.classes else [])
    chosen, is_local = resolve_classes(source, dataset), Path(source.path).expanduser().exists()
    if chosen is None and (declared := _declared_count(source, dataset)):
        return declared
    if not is_local and source.streaming:
        raise StreamError(f"{source.path!r} does not record its number of images; set it with data.images_per_epoch=...")
    if chosen is None:
        return (
            len(dataset) if isinstance(dataset, LocalDataset) else sum(len(b["image"]) for b in dataset.iter(batch_size=1024))
        )
    return sum(label in chosen for batch in dataset.iter(batch_size=1024) for label in batch[source.label_column])


def _declared_count(source: Source, dataset: Dataset) -> int | None:
    """Number of images that the metadata of a dataset hold; None if they do not."""
    if isinstance(dataset, LocalDataset):
        return dataset.declared
    splits, split = dataset.info.splits or {}, source.split or "train"
    return splits[split].num_examples if split in splits else None


def resolve_classes(source: Source, dataset: Dataset) -> set[int] | set[str] | None:
    """Labels of the classes that a source is limited to (`find_classes`), of a column of names these; None for no limit.

    Raises:
        StreamError: if the file cannot be read, or the dataset does not have these classes.
    """
    if source.classes is None:
        return None
    kind = (dataset.features or {}).get(source.label_column)
    names = getattr(kind, "names", None) or []
    try:
        if getattr(kind, "dtype", None) in TEXT:
            return set(read_class_list(source.classes))
        return find_classes(read_class_list(source.classes), names)
    except StreamError as error:
        where = f"data.classes={source.classes!r} for {source.path!r} (column {source.label_column!r})"
        raise StreamError(f"{where}: {error}") from error


def dataset_fingerprint(source: Source) -> dict[str, str | None]:
    """Which data these are: the Hub's commit, and a fingerprint of the files.

    The fingerprint is over their names, and for files on this machine over sizes and the first and last bytes, so that another
    version of the data has another one, a moved folder has the same, and no terabyte is read.

    Raises:
        StreamError: if the source cannot be opened.
    """
    opened = _open_here(source)
    if isinstance(opened, LocalDataset):
        return {"revision": None, "fingerprint": opened.fingerprint()}
    if opened is not None:
        names = sorted(file["filename"] for file in opened.cache_files)
        return {"revision": None, "fingerprint": _fingerprint(names)}
    try:
        builder = datasets.load_dataset_builder(**_location(source), name=source.name, revision=source.revision)
    except Exception as error:  # as above
        raise StreamError(f"cannot open {source.path!r}: {_text(error)}") from error
    files, split = builder.config.data_files or {}, source.split or "train"
    chosen = [files[split]] if split in files else files.values()
    names = sorted(str(name) for split in chosen for name in split)
    revision = re.search(r"^hf://datasets/[^@]+@([0-9a-f]{40})", names[0]) if names else None
    return {"revision": revision and revision.group(1), "fingerprint": _fingerprint(names)}


def _fingerprint(paths: Sequence[str]) -> str:
    return fingerprint_of_files(((Path(path).name, path) for path in paths), len(paths))
