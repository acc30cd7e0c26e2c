"""Read official checkpoint files as tensors by name, without executing any code in them."""

import argparse
import codecs
import logging
import pickle
from dataclasses import dataclass, field
from math import isfinite
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from hssl_hf.errors import UserError, reason, shown

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
CONTAINERS = ("model", "state_dict", "model_state_dict", "teacher", "student", "model_ema", "module", "net")
LARGEST_DEPTH = 4  # of dictionaries in each other
LOSSES = ("ibot_loss", "dino_loss", "pretrain_loss")  # the keys under which files keep the centers
logger = logging.getLogger(__name__)


class ConversionError(UserError):
    """A checkpoint that cannot be converted; the message reports what was expected and what the file contains."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and the arguments of training where the file contains them.

    Names from separate state dicts of a file have a prefix: `student.`, `teacher.`, and `loss.` for the centers.
    """

    state: dict[str, Tensor]
    arguments: dict = field(default_factory=dict)

    def number(self, *names: str, default: float) -> float:
        """The argument of training of the first of these names; raises a ConversionError for what is no finite number."""
        value = next((self.arguments[name] for name in names if name in self.arguments), default)
        if isinstance(value, bool) or not isinstance(value, Real) or not isfinite(value):
            raise ConversionError(f"args.{names[0]}: expected a number, got {shown(value)}")
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool | None:
        """An argument that is true or false; raises a ConversionError for another value."""
        value = self.arguments.get(name, default)
        if not isinstance(value, bool | None):
            raise ConversionError(f"args.{name}: expected True or False, got {shown(value)}")
        return value


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read a `.pth`, `.safetensors` or Jittor `.pkl` file without executing any code in it.

    Only tensors, arrays, plain containers and `argparse.Namespace` (in which official checkpoints store their arguments) are
    unpickled.

    Raises:
        ConversionError: if the file cannot be read safely, or contains no tensors.
    """
    content = _load(Path(path))
    content = content if isinstance(content, dict) else {}
    state = _find_state(content)
    if not state:
        raise ConversionError(
            f"{path} holds no weights: expected tensors by name, at the top or under {', '.join(CONTAINERS)}, got "
            f"{f'the entries {shown([str(key) for key in content][:20])}' if content else 'no entries'}"
        )
    if wrong := [name for name, value in state.items() if not _is_plain(value)]:
        raise ConversionError(
            f"{path}: expected dense tensors of real and finite numbers, got others in {', '.join(wrong[:5])} ({len(wrong)} of "
            f"{len(state)}); the file is damaged, or was saved in another form"
        )
    arguments = content.get("args")
    return Checkpoint(state, vars(arguments) if isinstance(arguments, argparse.Namespace) else {})


def _is_plain(value: Tensor) -> bool:
    if value.layout is not torch.strided or value.is_quantized or value.is_complex():
        return False
    return not value.is_floating_point() or bool(value.isfinite().all())


def _find_state(content: dict, depth: int = 0) -> dict[str, Tensor]:
    """Tensors by name in a dictionary or in one that it holds, without prefixes of wrappers; empty if there are none."""
    if isinstance(content.get("student"), dict) and isinstance(content.get("teacher"), dict):
        return _only_tensors(_join(content))
    for name in CONTAINERS if depth < LARGEST_DEPTH else ():
        if isinstance(content.get(name), dict) and (state := _find_state(content[name], depth + 1)):
            return state
    return _without_wrappers(_only_tensors(content))


def _only_tensors(state: dict) -> dict[str, Tensor]:
    """The dictionary itself; empty if it holds anything but tensors by name."""
    return state if all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()) else {}


def _without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without the prefix `module.` of distributed training, and of those with `backbone.` these alone, without it."""
    if state and all(name.startswith("module.") for name in state):
        return _without_wrappers({name.removeprefix("module."): value for name, value in state.items()})
    backbone = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    if not backbone:
        return dict(state)
    if left_out := sorted(name for name in state if not name.startswith("backbone.")):
        logger.warning("only the backbone is converted; %d tensors are left out, such as %s", len(left_out), left_out[0])
    return _without_wrappers(backbone)


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
    except Exception as error:  # of pickle, zip or tensors, about any content
        raise ConversionError(
            f"{path} cannot be read safely: {reason(error)[:600]}\nExpected a file of tensors, as torch.save or safetensors "
            "write it; other objects in it are never loaded."
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
        f"{network}.{str(name).removeprefix('module.')}": value
        for network in ("student", "teacher")
        for name, value in content[network].items()
    }
    for loss in LOSSES:
        centers = content.get(loss)
        joined |= {f"loss.{name}": value for name, value in centers.items()} if isinstance(centers, dict) else {}
    return joined
