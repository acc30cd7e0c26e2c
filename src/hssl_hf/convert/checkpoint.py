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
from torch import Tensor, nn

HARMLESS = {
    ("argparse", "Namespace"): argparse.Namespace,
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): codecs.encode,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    **{(f"numpy.{core}.multiarray", "scalar"): np.float64(0).__reduce__()[0] for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): np.zeros(1).__reduce__()[0] for core in ("core", "_core")},
}
LOSSES = ("ibot_loss", "dino_loss", "pretrain_loss")  # where the centres are


class ConversionError(ValueError):
    """A checkpoint that is not what it should be; the message says what was expected and what came."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and the arguments of the training where the file has them.

    Networks that a file keeps apart come with a prefix: `student.`, `teacher.`, and `loss.` for the centres.
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
    """Student, teacher and centres in one dict; distributed training has put `module.` in front of names."""
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


def base_arguments(state: dict[str, Tensor], num_heads: int | None, method: str = "SiameseIM") -> tuple[int, dict]:
    """Image size, and what makes `vit_base_patch16_224` a transformer of the state's shape.

    Args:
        num_heads: None for 16 at a width of 1280, else one for every 64 channels.
        method: for the message.
    """
    width, _, patch, _ = need(state, "patch_embed.proj.weight", 4, method).shape
    side = round((need(state, "pos_embed", 3, method).shape[1] - 1) ** 0.5)
    heads = num_heads or max(1, 16 if width == 1280 else width // 64)
    if width % heads:
        raise ConversionError(f"{heads} attention heads do not divide the width {width} of this checkpoint")
    return side * patch, {"patch_size": patch, "embed_dim": width, "depth": count(state, "blocks"), "num_heads": heads}


def need(state: dict[str, Tensor], name: str, axes: int, method: str = "SiameseIM") -> Tensor:
    """A tensor that has to be there.

    Raises:
        ConversionError: if it is not, or has another number of axes.
    """
    if name not in state:
        raise ConversionError(f"this is no {method} checkpoint: {name!r} is missing")
    if state[name].ndim != axes or 0 in state[name].shape:
        raise ConversionError(f"{name}: expected {axes} axes, none of them empty, got {tuple(state[name].shape)}")
    return state[name]


def count(state: dict[str, Tensor], blocks: str) -> int:
    """Number of blocks in a list of that name."""
    return len({name.removeprefix(f"{blocks}.").split(".")[0] for name in state if name.startswith(f"{blocks}.")})


def below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What stands under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def rename(name: str, table: dict[str, str]) -> str:
    """A name by a table of names, and of beginnings that end with a dot."""
    for old, new in table.items():
        if name == old or (old.endswith(".") and name.startswith(old)):
            return new + name[len(old) :]
    return name


def fit(model: nn.Module, state: dict[str, Tensor], official: dict[str, str], missing: set[str] = frozenset()) -> None:
    """Load a state that has to fit to the last tensor.

    Args:
        state: by our names.
        official: our names -> those of the file, for the message.
        missing: official names that were missing already.
    Raises:
        ConversionError: naming what is missing, unexpected or of another shape.
    """
    expected = model.state_dict()
    problems = [f"missing: {rename(name, official)}" for name in sorted({*expected.keys() - state.keys(), *missing})]
    problems += [f"unexpected: {rename(name, official)}" for name in sorted(state.keys() - expected.keys())]
    for name in sorted(expected.keys() & state.keys()):
        wanted, found = tuple(expected[name].shape), tuple(state[name].shape)
        if wanted != found:
            problems.append(f"{rename(name, official)}: expected {wanted}, got {found}")
    if problems:
        raise ConversionError("the checkpoint does not fit:\n  " + "\n  ".join(problems[:20]))
    model.load_state_dict(state)


def require_fixed_positions(found: Tensor, positions: Tensor, name: str) -> None:
    """Raise a ConversionError if a table (1, 1 + N, C) is not that of sines and cosines (N, C), with zeros in front."""
    expected = torch.cat([torch.zeros_like(positions[:1]), positions])
    if found.shape[1:] != expected.shape or (found[0] - expected).abs().max() > 1e-4:
        raise ConversionError(f"{name} is not the fixed table of sines and cosines that it should be")
