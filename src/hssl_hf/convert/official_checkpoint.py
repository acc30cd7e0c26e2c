"""Read official checkpoint files as tensors by name, without executing any code in them."""

import argparse
import codecs
import pickle
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hssl_hf.errors import UserError

SAFE_CLASSES = {
    ("argparse", "Namespace"): argparse.Namespace,
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): codecs.encode,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    **{(f"numpy.{core}.multiarray", "scalar"): np.float64(0).__reduce__()[0] for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): np.zeros(1).__reduce__()[0] for core in ("core", "_core")},
}
DTYPES = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")]  # old pickles contain instances
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, AttributeError, LookupError, pickle.UnpicklingError, SafetensorError)
LOSSES = ("ibot_loss", "dino_loss", "pretrain_loss")  # the keys under which files keep the centers


class ConversionError(UserError):
    """A checkpoint that cannot be converted; the message reports what was expected and what the file contains."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and the arguments of training where the file contains them.

    Names from separate state dicts of a file have a prefix: `student.`, `teacher.`, and `loss.` for the centers.
    """

    state: dict[str, Tensor]
    arguments: dict = field(default_factory=dict)


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read a `.pth`, `.safetensors` or Jittor `.pkl` file without executing any code in it.

    Only tensors, arrays, plain containers and `argparse.Namespace` (in which official checkpoints store their arguments) are
    unpickled.

    Raises:
        ConversionError: if the file cannot be read safely, or contains no tensors.
    """
    content = _load(Path(path))
    if not isinstance(content, dict):
        content = {}
    state = content.get("model", content.get("state_dict", content))
    if isinstance(content.get("student"), dict) and isinstance(content.get("teacher"), dict):
        state = _join(content)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConversionError(f"expected tensors by name in {path}, at the top or under 'model' or 'state_dict', got none")
    arguments = content.get("args")
    return Checkpoint(dict(state), vars(arguments) if isinstance(arguments, argparse.Namespace) else {})


def _load(path: Path):
    """Content of a file of safetensors, in one of PyTorch's formats, or a plain pickle of arrays as Jittor writes it."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with path.open("rb") as file:
            if not file.read(4).startswith((b"PK", b"\x80\x02\x8a\n")):
                file.seek(0)
                return _tensors(_ArrayUnpickler(file).load())
        with torch.serialization.safe_globals([(kind, ".".join(name)) for name, kind in SAFE_CLASSES.items()] + DTYPES):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ConversionError(
            f"{path} cannot be read safely: {error}\nExpected a file of tensors, as torch.save or safetensors write it; other "
            "objects in it are never loaded."
        ) from error


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles plain containers, numbers and numpy arrays only, of which Jittor's checkpoints consist."""

    def find_class(self, module: str, name: str):
        if (module, name) not in SAFE_CLASSES:
            raise pickle.UnpicklingError(f"{module}.{name} is not a class that may be loaded")
        return SAFE_CLASSES[module, name]


def _tensors(value):
    """Nested dictionaries of arrays as nested dictionaries of tensors."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    return {key: _tensors(item) for key, item in value.items()} if isinstance(value, dict) else value


def _join(content: dict) -> dict[str, Tensor]:
    """Student, teacher and centers in one dict, without the prefix `module.` of distributed training."""
    joined = {
        f"{network}.{name.removeprefix('module.')}": value
        for network in ("student", "teacher")
        for name, value in content[network].items()
    }
    for loss in LOSSES:
        joined |= {f"loss.{name}": value for name, value in content.get(loss, {}).items()}
    return joined
