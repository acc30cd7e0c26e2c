"""Tensors and plain values in one file, with a checksum."""

import json
import zlib
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from hssl_hf.data.files import read_below, write_below

EXTRA = "extra"  # name of the tensor that holds the plain values, as JSON


def write_tensors(folder: Path, name: str, tensors: dict[str, Tensor], extra: dict) -> None:
    """Write a file of a folder.

    Args:
        tensors: by name.
        extra: plain values, as JSON has them.
    Raises:
        UserError: if it cannot be written.
    """
    text = torch.frombuffer(bytearray(json.dumps(extra).encode()), dtype=torch.uint8)
    content = save({EXTRA: text, **{key: tensor.contiguous() for key, tensor in tensors.items()}})
    write_below(folder, name, content + zlib.crc32(content).to_bytes(4, "little"))


def read_tensors(folder: Path, name: str) -> tuple[dict[str, Tensor], dict]:
    """Tensors and plain values of a file of a folder.

    Raises:
        OSError: if there is no such file.
        ValueError: if its checksum does not fit.
    """
    content = read_below(folder, name)
    content, checksum = content[:-4], content[-4:]
    if zlib.crc32(content).to_bytes(4, "little") != checksum:
        raise ValueError("its checksum does not fit")
    tensors = load(content)
    return tensors, json.loads(tensors.pop(EXTRA).numpy().tobytes())
