"""Official checkpoint files -> tensors by name, without running anything that is in them."""

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

HARMLESS = {
    ("argparse", "Namespace"): argparse.Namespace,
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): codecs.encode,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    **{(f"numpy.{core}.multiarray", "scalar"): np.float64(0).__reduce__()[0] for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): np.zeros(1).__reduce__()[0] for core in ("core", "_core")},
}
LOSSES = ("ibot_loss", "dino_loss", "pretrain_loss")  # where the centers are


class ConversionError(UserError):
    """A checkpoint that is not what it should be; the message holds what was expected and what came."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and the arguments of the training where the file has them.

    Networks that a file keeps apart come with a prefix: `student.`, `teacher.`, and `loss.` for the centers.
    """

    state: dict[str, Tensor]
    arguments: dict = field(default_factory=dict)

    @property
    def fine_tuned(self) -> bool:
        return "head.weight" in self.state


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read a `.pth`, `.safetensors` or Jittor `.pkl` file without running anything that is in it.

    Of the classes that a pickle may name, only plain tensors, arrays and containers and `argparse.Namespace` (a bag of values,
    in which official checkpoints keep their arguments) are made.

    Raises:
        ConversionError: if the file cannot be read like that, or holds no tensors.
    """
    if Path(path).suffix == ".safetensors":
        try:
            return Checkpoint(load_file(path))
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, error) from error
    content = _load(Path(path))
    if not isinstance(content, dict):
        content = {}
    state = content.get("model", content.get("state_dict", content))
    if isinstance(content.get("student"), dict) and isinstance(content.get("teacher"), dict):
        state = _join(content)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConversionError(f"{path} holds no weights: expected tensors by name, by themselves or under the key 'model'")
    arguments = content.get("args")
    return Checkpoint(dict(state), vars(arguments) if isinstance(arguments, argparse.Namespace) else {})


def _load(path: Path):
    """What a file holds, by its first bytes: PyTorch's formats, or a plain pickle of arrays as Jittor writes it."""
    try:
        with path.open("rb") as file:
            if not file.read(4).startswith((b"PK", b"\x80\x02\x8a\n")):
                file.seek(0)
                return _tensors(_ArraysOnly(file).load())
        with torch.serialization.safe_globals([(kind, ".".join(name)) for name, kind in HARMLESS.items()] + _dtypes()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, AttributeError, LookupError) as error:
        raise _unreadable(path, error) from error


def _dtypes() -> list:
    """numpy's classes of dtypes, of which old pickles hold instances."""
    return [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")]


class _ArraysOnly(pickle.Unpickler):
    """Plain containers, numbers and numpy arrays, as Jittor writes checkpoints."""

    def find_class(self, module: str, name: str):
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"{module}.{name} is not among the classes that are read")
        return HARMLESS[module, name]


def _tensors(value):
    """Arrays as tensors, at every depth."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    return {key: _tensors(item) for key, item in value.items()} if isinstance(value, dict) else value


def _join(content: dict) -> dict[str, Tensor]:
    """Student, teacher and centers in one dict; distributed training has put `module.` in front of names."""
    joined = {
        f"{part}.{name.removeprefix('module.')}": value
        for part in ("student", "teacher")
        for name, value in content[part].items()
    }
    for part in LOSSES:
        joined |= {f"loss.{name}": value for name, value in content.get(part, {}).items()}
    return joined


def _unreadable(path: Path | str, error: Exception) -> ConversionError:
    return ConversionError(
        f"{path} is no checkpoint that can be read safely: {error}\nExpected a file of tensors, as torch.save or "
        "safetensors write it. Other objects in it are never loaded."
    )
