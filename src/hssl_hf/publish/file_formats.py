"""Whether files that are published or shown are what their names promise, by their content."""

import json
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import BinaryIO

from PIL import Image

from hssl_hf.errors import UserError, reason

PNG_END = b"IEND\xaeB`\x82"
LONGEST_HEADER = 100_000_000  # bytes, the limit of safetensors


class FormatError(UserError):
    """A file whose content is of another kind than its name promises."""


def require_format(name: str, file: BinaryIO) -> None:
    """Check the content of a file.

    Args:
        name: whose ending gives the expected kind: .png, .safetensors, .json, .yaml, .md or .onnx; others are not checked.
        file: open at its start.
    Raises:
        FormatError: if it is of another kind, or damaged.
    """
    check = CHECKS.get(PurePath(name).suffix)
    if check is None:
        return
    try:
        problem = check(file)
    except Exception as error:  # of a library, about any content
        problem = reason(error)
    if problem:
        kind = PurePath(name).suffix.removeprefix(".")
        raise FormatError(f"{name} is not a {kind} file, or a damaged one ({problem}); remove it, or write it again")


def _check_png(file: BinaryIO) -> str | None:
    with Image.open(file, formats=["PNG"]) as image:
        image.verify()
    file.seek(-len(PNG_END), 2)
    return None if file.read() == PNG_END else "something follows the image"


def _check_safetensors(file: BinaryIO) -> str | None:
    length = int.from_bytes(file.read(8), "little")
    if length > LONGEST_HEADER:
        return "no header of safetensors"
    header = json.loads(file.read(length))
    end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    size = file.seek(0, 2) - 8 - length
    return None if size == end else f"its header promises {end} bytes of tensors, it has {size}"


def _check_json(file: BinaryIO) -> None:
    json.loads(file.read().decode())


def _check_text(file: BinaryIO) -> str | None:
    return "a null byte in a text" if "\0" in file.read().decode() else None


def _check_onnx(file: BinaryIO) -> str | None:
    return None if file.read(1) == b"\x08" else "its first field is not the version of ONNX"


CHECKS: dict[str, Callable[[BinaryIO], str | None]] = {
    ".png": _check_png,
    ".safetensors": _check_safetensors,
    ".json": _check_json,
    ".yaml": _check_text,
    ".md": _check_text,
    ".onnx": _check_onnx,
}


def require_formats(files: dict[str, Path]) -> None:
    """Check files by their names in a repository; errors as of `require_format`."""
    for name, path in files.items():
        with path.open("rb") as file:
            require_format(name, file)
