"""Tar shards: every image in them, whatever their members are called; damaged parts are counted and named."""

import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from posixpath import basename, join, split, splitext
from types import SimpleNamespace
from typing import BinaryIO

import datasets
from datasets.utils.file_utils import xopen

from hssl_hf.data.decode import SUFFIXES, is_image
from hssl_hf.data.image_folder import APPLE_DOUBLE, OTHER_SUFFIXES
from hssl_hf.data.local_dataset import LeftOut, LocalDataset, fingerprint_of_files
from hssl_hf.data.remote import web_options

BLOCK, RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE
CHUNK = 2**20
MAGIC, MAGIC_OFFSET = b"ustar", 257  # of a header
NUMBERS = {int: r"[-+]?\d+", float: r"[-+]?\d*\.\d*(e[-+]?\d+)?"}  # as files with a label write them


@dataclass(frozen=True)
class Member:
    """A file or link in a tar, or a damaged part.

    Args:
        name: of the file; of a damaged part None.
        offset, size: where its contents are, in bytes.
        data: contents of a file, if they were to be read.
        is_link: it has no contents of its own.
    """

    name: str | None
    offset: int
    size: int
    data: bytes = b""
    is_link: bool = False


def read_members(file: BinaryIO, wanted=lambda name: True) -> Iterator[Member]:
    """The regular files of a tar in order, and its damaged parts, after each of which reading continues at the next header.

    Damaged are blocks where a header is expected and none is, zeros that do not end the file, and a file that ends before its
    last member does or without the block of zeros that marks its end.

    Args:
        file: at its beginning; it is read forward only.
        wanted: whether the contents of a member of this name are needed.
    """
    reader = _ForwardReader(file)
    # What `TarInfo.fromtarfile` needs of an archive. A `TarFile` ends at the first damaged header, as if nothing followed.
    archive = SimpleNamespace(fileobj=reader, encoding="utf-8", errors="surrogateescape", pax_headers={}, offset=0)
    zeros_since = damaged_since = None
    while True:
        start, block = reader.position, reader.peek(BLOCK)
        try:
            info = tarfile.TarInfo.fromtarfile(archive)
        except tarfile.EOFHeaderError:  # a block of zeros
            zeros_since = start if zeros_since is None else zeros_since
            continue
        except tarfile.EmptyHeaderError:
            damaged_since = start if zeros_since is None and damaged_since is None else damaged_since
            if damaged_since is not None:
                yield Member(None, damaged_since, start - damaged_since)
            return
        except (tarfile.HeaderError, ValueError):
            if damaged_since is None:
                damaged_since = start if zeros_since is None else zeros_since
            if reader.position == start + len(block):
                reader.push_back(block[1:])  # the next header may begin in it, after bytes that are missing
            reader.seek_header()
            continue
        if damaged_since is None and zeros_since is not None and info.offset % RECORD:  # else another tar was appended
            damaged_since = zeros_since
        if damaged_since is not None:
            yield Member(None, damaged_since, info.offset - damaged_since)
        zeros_since = damaged_since = None
        data = reader.read(info.size) if info.isreg() and wanted(info.name) else b""
        reader.seek(archive.offset)
        if info.isreg() and reader.position < info.offset_data + info.size:
            yield Member(None, info.offset_data, reader.position - info.offset_data)
            return
        if info.isreg() or info.islnk() or info.issym():
            yield Member(info.name, info.offset_data, info.size, data, is_link=not info.isreg())


class _ForwardReader:
    """A file that is read forward only, with what tarfile uses of one."""

    def __init__(self, file: BinaryIO):
        self.file, self.position, self._ahead = file, 0, b""
        self.size = os.fstat(file.fileno()).st_size if isinstance(file, io.BufferedReader) else None  # a file of this machine

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        pieces, self._ahead = [self._ahead[:size]], self._ahead[size:]
        missing = size - len(pieces[0])
        while missing > 0 and (piece := self.file.read(min(missing, CHUNK))):
            pieces.append(piece)
            missing -= len(piece)
        data = b"".join(pieces)
        self.position += len(data)
        return data

    def push_back(self, data: bytes) -> None:
        """Let the last bytes that were read be read again."""
        self._ahead = data + self._ahead
        self.position -= len(data)

    def peek(self, size: int) -> bytes:
        data = self.read(size)
        self.push_back(data)
        return data

    def seek(self, position: int) -> None:
        if self.size is not None and position > self.position + len(self._ahead):
            self._ahead, self.position = b"", self.file.seek(min(position, self.size))
        while position > self.position and self.read(min(CHUNK, position - self.position)):
            pass

    def seek_header(self) -> None:
        """Move to the next header, wherever it begins, or to the end."""
        window = b""
        while piece := self.read(CHUNK):
            window = window[-2 * BLOCK :] + piece
            at = window.find(MAGIC, MAGIC_OFFSET)
            while at != -1:
                header = window[at - MAGIC_OFFSET :]
                if _is_header(header[:BLOCK]):
                    self.push_back(header)
                    return
                at = window.find(MAGIC, at + 1)


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def _label_in(text: str) -> int | float | str:
    """What a file with a label holds: a number, or the name of a class."""
    kind = next((kind for kind, form in NUMBERS.items() if re.fullmatch(form, text)), str)
    return kind(text)


class TarShards(LocalDataset):
    """The images in tar files on this machine or behind URLs, one row each; a damaged part is a row without bytes.

    Args:
        paths: of the tar files.
        names: of the tar files for messages.
        field: what follows the sample's name in the names of the images to read, such as "jpg"; None for all images.
        label_column: what follows the sample's name in that of the file with its label, such as "cls", or a key of its json.
        reading: how the names were read, for a message.
        left_out: other files.
    """

    def __init__(
        self,
        paths: Sequence[str],
        field: str | None = None,
        label_column: str | None = None,
        reading: str = "",
        left_out: LeftOut | None = None,
    ):
        super().__init__(paths, datasets.Features({"image": datasets.Image(decode=False)}))
        self.field, self.label_column, self.reading, self.left_out = field, label_column, reading, left_out or LeftOut()

    def __len__(self) -> int:
        return self.contents.images

    @property
    def is_remote(self) -> bool:
        return any("://" in path for path in self.shards)

    @cached_property
    def contents(self) -> "Contents":
        """What the headers of all members show; files on this machine are not read otherwise."""
        contents = Contents()
        for path in self.shards:
            with open_tar(path) as file:
                for member in read_members(file, lambda name: suffix_of(name) not in SUFFIXES | OTHER_SUFFIXES):
                    contents.add(member, basename(path), self._is_wanted_image(member))
        return contents

    def read(self, shard: str, first: int) -> Iterator[dict]:
        yield from islice(self._rows(shard), first, None)

    def _rows(self, path: str) -> Iterator[dict]:
        needed = OTHER_SUFFIXES if self.label_column is None else ()
        with open_tar(path) as file:
            members = read_members(file, lambda name: suffix_of(name) not in needed)
            if self.label_column is None:
                for member in members:
                    if self._is_wanted_image(member):
                        yield {"image": self._cell(member, path)}
                return
            for _, group in groupby(members, lambda member: member.name and sample_name(member.name)):
                sample = list(group)
                files = {member.name: member.data for member in sample if member.name}
                for member in sample:
                    if self._is_wanted_image(member):
                        yield {"image": self._cell(member, path), self.label_column: self._label(member.name, files)}

    def _is_wanted_image(self, member: Member) -> bool:
        """Whether a member makes a row: an image of the field, or a damaged part."""
        name = member.name
        if name is None:
            return True
        ending = f".{self.field}".lower() if self.field else ""
        if member.is_link or basename(name).startswith(APPLE_DOUBLE) or not name.lower().endswith(ending):
            return False
        suffix = suffix_of(name)
        return suffix in SUFFIXES or (suffix not in OTHER_SUFFIXES and is_image(io.BytesIO(member.data)))

    def _cell(self, member: Member, path: str) -> dict:
        name = f"damaged part from byte {member.offset} on" if member.name is None else member.name
        return {"bytes": member.data, "path": f"{name} of {basename(path)}"}

    def _label(self, name: str | None, files: dict[str, bytes]) -> object:
        """The label of an image from the files of its sample; those whose names share most with its own come first."""
        stem = name or ""
        while stem:
            if (text := files.get(f"{stem}.{self.label_column}")) is not None:
                return _label_in(text.decode(errors="replace").strip())
            values = json.loads(files.get(f"{stem}.json", b"null"))
            if isinstance(values, dict) and values.get(self.label_column) is not None:
                return values[self.label_column]
            stem = stem.rpartition(".")[0] if "." in basename(stem) else ""
        return None

    def lost_images(self) -> int:
        return 0 if self.is_remote else self.contents.lost()

    def summary(self) -> str:
        if self.is_remote:
            count = f"{self.declared} samples in " if self.declared else ""
            left_out = f"; left out: {self.left_out}" if self.left_out else ""
            return f"{count}{len(self.shards)} tar shards on other machines{left_out}"
        contents = self.contents
        text = f"{contents.images} images ({contents.kinds()}) in {len(self.shards)} tar shards"
        parts = [f"{text}, {len(contents.damaged)} damaged parts" + (f": {contents.damaged}" if contents.damaged else "")]
        parts += [f"left out: {left_out}" for left_out in (contents.left_out, self.left_out) if left_out]
        return "; ".join([*parts, *([self.reading] if self.reading else [])])

    def fingerprint(self) -> str:
        return fingerprint_of_files(((basename(path), path) for path in self.shards), len(self.shards))


class Contents:
    """What tar shards hold: the number of images, how many of each suffix, damaged parts, and other files."""

    def __init__(self):
        self.images, self.bytes, self.suffixes = 0, 0, Counter()
        self.damaged, self.damaged_sizes, self.left_out = LeftOut(), [], LeftOut()

    def add(self, member: Member, shard: str, is_row: bool) -> None:
        if member.name is None:
            self.damaged.add("parts", f"{shard} from byte {member.offset} on")
            self.damaged_sizes.append(member.size)
        elif is_row:
            self.images += 1
            self.bytes += member.size + BLOCK
            self.suffixes[suffix_of(member.name) or "without a suffix"] += 1
        elif member.is_link:
            self.left_out.add("links", member.name)
        else:
            self.left_out.add_file(member.name)

    def lost(self) -> int:
        """Number of images that the damaged parts have held, estimated from their sizes, but at least one each."""
        per_image = self.bytes / self.images if self.images else BLOCK
        return sum(max(1, round(size / per_image)) for size in self.damaged_sizes)

    def kinds(self) -> str:
        return ", ".join(f"{count} {suffix}" for suffix, count in sorted(self.suffixes.items()))


def suffix_of(name: str) -> str:
    return splitext(name)[1].lower()


def sample_name(name: str) -> str:
    """The part of a member's name that the files of a sample share: up to the first dot of its last component."""
    folder, file = split(name)
    return join(folder, file.partition(".")[0])


def open_tar(path: str) -> BinaryIO:
    """Open a tar file of this machine, or the URL of one, whose server is tried again if it fails for a moment."""
    if "://" not in path:
        return Path(path).open("rb")
    return xopen(path, "rb", download_config=datasets.DownloadConfig(storage_options=web_options()), block_size=0)
