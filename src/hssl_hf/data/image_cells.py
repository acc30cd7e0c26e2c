"""A cell of a column of images -> its bytes, with limits to the files that a dataset may name.

A dataset is written by others: a path in it could name any file of this machine, and the figures of a run show what was read.
"""

from pathlib import Path
from posixpath import abspath, dirname, exists, expanduser, isdir, join, normpath
from typing import TYPE_CHECKING
from urllib.parse import unquote

import datasets
from datasets.utils.file_utils import xopen
from huggingface_hub import constants

from hssl_hf.data.errors import StreamError
from hssl_hf.data.local_dataset import printable
from hssl_hf.data.remote import web_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hssl_hf.data.source import Source

SERVERS = ("http", "https", "hf", "s3", "gs")  # protocols that do not lead to files of this machine
ARCHIVES = ("zip", "tar", "gzip", "bz2", "xz", "zstd", "lz4")  # through which a path may lead into a file of the dataset


def image_bytes(image: "Mapping | None", source: "Source") -> bytes:
    """Bytes of a cell of type `Image(decode=False)`; empty where there is no readable file, which decoders reject.

    Paths are relative to the dataset. They are read only below its folder or repository, links included, and URLs below its
    own only, unless `allow_remote_paths` is set.

    Raises:
        StreamError: for other paths, and for a server that cannot be reached.
    """
    image = image or {}
    if image.get("bytes") is not None or image.get("path") is None:
        return image.get("bytes") or b""
    path = image["path"].removeprefix("file://")
    if "://" in path:
        return _read_remote(path, source)
    root = _local_root(source)
    location = normpath(join(root or "/", path))
    if not any(_is_below(location, folder) for folder in ([root] if root else _caches(source.path))):
        raise StreamError(
            f"{source.path!r} refers to the file {printable(path)!r}, which is outside its folder. Only files below "
            "the dataset's own folder are read; move them there, or set data.path to a folder that holds both"
        )
    try:
        return Path(location).read_bytes()
    except (OSError, ValueError):  # no such file, no permission, a bad disk, no possible name
        return b""


def _read_remote(path: str, source: "Source") -> bytes:
    *hops, last = path.split("::")
    below = last.startswith(_remote_roots(source)) and ".." not in unquote(last).split("/")
    is_remote = source.allow_remote_paths and last.split("://")[0] in SERVERS
    if not (below or is_remote) or any(hop.split("://")[0] not in ARCHIVES for hop in hops):
        raise StreamError(
            f"{source.path!r} refers to the URL {printable(path, 300)!r}, which is outside of it. URLs are opened only with "
            f"data.allow_remote_paths=true, whose servers would then see the requests, and only by {', '.join(SERVERS)}"
        )
    try:
        with xopen(path, "rb", download_config=datasets.DownloadConfig(storage_options=web_options())) as file:
            return file.read()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise StreamError(f"cannot read {printable(path, 300)!r}: {error}") from error


def _local_root(source: "Source") -> str | None:
    """The folder of a dataset on this machine; None for others."""
    path = expanduser(source.path)
    if isdir(path):
        return abspath(path)
    return abspath(dirname(path)) if exists(path) else None


def _remote_roots(source: "Source") -> tuple[str, ...]:
    if "://" in source.path:
        return (source.path.rpartition("/")[0] + "/",)
    root = _local_root(source)
    return (f"{root}/",) if root else tuple(f"hf://datasets/{source.path}{end}" for end in "@/")


def _caches(repository: str) -> list[str]:
    """Where the libraries keep files of a Hub dataset; those that they extract are below the second."""
    hub = join(constants.HF_HUB_CACHE, "datasets--" + repository.replace("/", "--"))
    return [hub, str(datasets.config.EXTRACTED_DATASETS_PATH)]


def _is_below(path: str, folder: str) -> bool:
    return join(path, "").startswith(join(abspath(folder), ""))
