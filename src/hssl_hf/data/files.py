"""Files that a run leaves and users bring: read and written without following links, complete or not at all."""

import errno
import json
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import BinaryIO

from hssl_hf.errors import UserError, reading, shown, writing

FOLDER = os.O_RDONLY | os.O_DIRECTORY
SHOWN = 5  # damaged lines that a warning names
logger = logging.getLogger(__name__)


class LinkError(UserError):
    """A link, or something else that is no file, where a file of the folder itself was expected."""


@contextmanager
def open_below(folder: Path | str, name: str) -> Iterator[BinaryIO]:
    """Open a file of a folder for reading.

    Args:
        folder: may be a link itself; what is below it may not.
        name: relative to it.
    Raises:
        LinkError: for links, and for pipes, devices and folders.
        UserError: if it cannot be read.
    """
    with reading(Path(folder, name)), _parent(folder, name) as (parent, last):
        file = os.fdopen(os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent), "rb")
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise LinkError(_expected_file(folder, name))
        yield file


def read_below(folder: Path | str, name: str) -> bytes:
    """Content of a file of a folder; errors as of `open_below`."""
    with reading(Path(folder, name)), open_below(folder, name) as file:
        return file.read()


def write_below(folder: Path | str, name: str, content: str | bytes) -> None:
    """Write a file of a folder in one step: a full disk leaves an earlier one as it is, and a link is replaced.

    Args:
        folder, name: as for `open_below`; folders between them are made.
        content: of the file.
    Raises:
        LinkError: if a folder below `folder` is a link.
        UserError: if it cannot be written.
    """
    content = content.encode() if isinstance(content, str) else content
    with writing(Path(folder, name)), _parent(folder, name, make=True) as (parent, last):
        draft = f".{last}.{os.getpid()}"
        with suppress(FileNotFoundError):
            os.unlink(draft, dir_fd=parent)
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666, dir_fd=parent)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.replace(draft, last, src_dir_fd=parent, dst_dir_fd=parent)
        finally:
            with suppress(OSError):
                os.unlink(draft, dir_fd=parent)


@contextmanager
def append_below(folder: Path | str, name: str) -> Iterator[BinaryIO]:
    """Open a file of a folder for reading, and for writing at its end; it is created if needed. Arguments as of `open_below`.

    Raises:
        LinkError: for links, and for pipes and devices.
        UserError: if it cannot be opened.
    """
    with writing(Path(folder, name)), _parent(folder, name) as (parent, last):
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(last, flags, 0o666, dir_fd=parent)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise LinkError(_expected_file(folder, name))
    with os.fdopen(descriptor, "ab+") as file:
        yield file


def make_folder_below(folder: Path | str, name: str) -> Path:
    """Make an empty folder in another one, in place of whatever has its name, links included. Arguments as of `write_below`.

    Raises:
        LinkError: if a folder between the two is a link.
        UserError: if it cannot be written.
    """
    with writing(Path(folder, name)), _parent(folder, name, make=True) as (parent, last):
        with suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(last, dir_fd=parent, follow_symlinks=False).st_mode):
                shutil.rmtree(last, dir_fd=parent)
            else:
                os.unlink(last, dir_fd=parent)
        os.mkdir(last, dir_fd=parent)
    return Path(folder, name)


@contextmanager
def _parent(folder: Path | str, name: str, make: bool = False) -> Iterator[tuple[int, str]]:
    """A descriptor of the folder that holds a file, to which no link below `folder` leads, and the last part of the name."""
    *between, last = PurePath(name).parts
    here = os.open(folder, FOLDER)
    try:
        for part in between:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=here)
            before, here = here, os.open(part, FOLDER | os.O_NOFOLLOW, dir_fd=here)
            os.close(before)
        yield here, last
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            raise
        raise LinkError(_expected_file(folder, name)) from error
    finally:
        os.close(here)


def _expected_file(folder: Path | str, name: str) -> str:
    return (
        f"{Path(folder, name)} is a link or no file, or in a folder that is a link; expected a file of {folder} itself, since "
        "a link could lead to any file of this machine. Replace it by a copy, or remove it"
    )


def require_output(path: Path | str | None, option: str, *endings: str) -> None:
    """Make sure, before any work, that a file can be written later.

    Args:
        path: of the file; None for none.
        option: that names it, for the message.
        endings: that its name may have; any if there are none.
    Raises:
        UserError: if its folder does not exist or is not writable, if it is a folder, or has another ending.
    """
    if path is None:
        return
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{option}: expected a file, got the folder {path}; add the name of a file")
    if not path.parent.is_dir():
        raise UserError(f"{option}: expected a file in a folder that exists, got {path}; create {path.parent} or name another")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"{option}: {path} cannot be written, for lack of permission; name another file")
    if endings and path.suffix.lower().removeprefix(".") not in endings:
        raise UserError(f"{option}: expected a file name that ends with one of .{', .'.join(endings)}, got {path}")


def require_writable(folder: Path | str) -> None:
    """Make sure, before any work, that a folder can be written or created; raises a UserError if not."""
    existing = Path(folder).absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"{folder} cannot be written: {existing} is not a folder, or one without write permission; name another"
        )


def append_line(path: Path | str, values: dict) -> None:
    """Append a line of JSON, behind what may have been cut short; raises a UserError if it is a link or cannot be written."""
    path = Path(path)
    with writing(path), append_below(path.parent, path.name) as file:
        start = b""
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            start = b"" if file.read(1) == b"\n" else b"\n"
        file.write(start + json.dumps(values).encode() + b"\n")


def read_lines(path: Path | str, check=lambda line: None) -> list[dict]:
    """Objects of a file of JSON lines; none if there is no such file. Damaged lines are skipped, with a warning.

    Args:
        path: of the file, no link.
        check: raises a ValueError for an object that is not one of this file.
    Raises:
        UserError: if the file cannot be read.
    """
    path, lines, damaged = Path(path), [], []
    if not path.exists() and not path.is_symlink():
        return []
    for number, text in enumerate(read_below(path.parent, path.name).decode(errors="replace").split("\n"), 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            if not isinstance(line, dict):
                raise ValueError(f"expected an object, got {shown(line)}")
            check(line)
        except (ValueError, RecursionError) as error:
            damaged.append(f"line {number} ({str(error)[:100]})")
        else:
            lines.append(line)
    if damaged:
        others = f" and {len(damaged) - SHOWN} more" if len(damaged) > SHOWN else ""
        logger.warning("%s: damaged lines are skipped: %s%s", path, ", ".join(damaged[:SHOWN]), others)
    return lines


def read_object(path: Path | str) -> dict:
    """The object of a JSON file; empty if there is no such file, and, with a warning, if it is damaged.

    Raises:
        UserError: if the file cannot be read.
    """
    path = Path(path)
    if not path.exists() and not path.is_symlink():
        return {}
    try:
        value = json.loads(read_below(path.parent, path.name).decode())
        if isinstance(value, dict):
            return value
        reason = f"expected an object, got {shown(value)}"
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        reason = str(error)
    logger.warning("%s is damaged and was skipped: %s", path, reason)
    return {}
