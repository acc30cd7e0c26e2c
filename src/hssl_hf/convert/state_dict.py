"""State dicts of official checkpoints: required tensors, renaming, strict loading."""

import torch
from torch import Tensor, nn

from hssl_hf.convert.official_checkpoint import ConversionError
from hssl_hf.modules.backbone import Backbone

BASE = ("cls_token", "pos_embed", "patch_embed.", "blocks.")  # of a vision transformer without its final norm
BASE_NAMES = {name: f"base.model.{name}" for name in BASE}
ENCODER = {**BASE_NAMES, "norm.": "base.norm."}


def base_config(state: dict[str, Tensor], num_heads: int | None, method: str = "SiameseIM") -> dict:
    """Values of a configuration that give the base the shapes of a checkpoint.

    Args:
        num_heads: attention heads; None for 16 at a width of 1280, else one per 64 channels.
        method: for the error message.
    Raises:
        ConversionError: if the tensors that determine the shapes are missing or have other shapes, or the heads do not divide
            the width.
    """
    width, _, patch, _ = require_tensor(state, "patch_embed.proj.weight", 4, method).shape
    side = round((require_tensor(state, "pos_embed", 3, method).shape[1] - 1) ** 0.5)
    heads = num_heads or max(1, 16 if width == 1280 else width // 64)
    if width % heads:
        raise ConversionError(f"{heads} attention heads do not divide the width {width}; set --num-attention-heads")
    kwargs = {"patch_size": patch, "embed_dim": width, "depth": count(state, "blocks"), "num_heads": heads}
    return {"backbone": "vit_base_patch16_224", "backbone_kwargs": kwargs, "image_size": side * patch}


def require_tensor(state: dict[str, Tensor], name: str, axes: int, method: str = "SiameseIM") -> Tensor:
    """A tensor of the checkpoint.

    Raises:
        ConversionError: if it is missing, empty, or has another number of axes.
    """
    if name not in state:
        raise ConversionError(f"expected a checkpoint of {method}, but {name!r} is missing; set another --method or file")
    if state[name].ndim != axes or 0 in state[name].shape:
        raise ConversionError(f"{name}: expected {axes} axes, none of them empty, got {tuple(state[name].shape)}")
    return state[name]


def count(state: dict[str, Tensor], blocks: str) -> int:
    """Number of blocks under a name, such as `decoder_blocks`."""
    return len({name.removeprefix(f"{blocks}.").split(".")[0] for name in state if name.startswith(f"{blocks}.")})


def strip_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, with the prefix removed."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def rename(name: str, table: dict[str, str]) -> str:
    """Rename by a table of full names and of prefixes that end with a dot; other names are returned unchanged."""
    for old, new in table.items():
        if name == old or (old.endswith(".") and name.startswith(old)):
            return new + name[len(old) :]
    return name


def load_strict(model: nn.Module, state: dict[str, Tensor], table: dict[str, str], missing: set[str] = frozenset()) -> None:
    """Load weights, which must match the model in every name and shape.

    Args:
        state: weights by official names.
        table: official names -> ours, as in `rename`.
        missing: official names that are already known to be missing.
    Raises:
        ConversionError: with every tensor that is missing, unexpected or of another shape.
    """
    state = {rename(name, table): value for name, value in state.items()}
    official = {ours: name for name, ours in reversed(table.items())}  # of two names for one of ours, errors show the first
    expected = model.state_dict()
    problems = [f"missing: {rename(name, official)}" for name in sorted({*expected.keys() - state.keys(), *missing})]
    problems += [f"unexpected: {rename(name, official)}" for name in sorted(state.keys() - expected.keys())]
    for name in sorted(expected.keys() & state.keys()):
        if expected[name].shape != state[name].shape:
            shapes = f"expected {tuple(expected[name].shape)}, got {tuple(state[name].shape)}"
            problems.append(f"{rename(name, official)}: {shapes}")
    if problems:
        raise ConversionError("the checkpoint does not match the model:\n  " + "\n  ".join(problems[:20]))
    model.load_state_dict(state)


def load_base(base: Backbone, state: dict[str, Tensor]) -> None:
    """Load a vision transformer with its final norm; errors as in `load_strict`."""
    load_strict(base, state, {name: ours.removeprefix("base.") for name, ours in ENCODER.items()})


def check_sincos(embedding: Tensor, positions: Tensor, name: str) -> None:
    """Raise a ConversionError unless an embedding (1, 1 + N, C) is zeros, then sine-cosine `positions` (N, C)."""
    expected = torch.cat([torch.zeros_like(positions[:1]), positions])
    if embedding.shape[1:] != expected.shape or (embedding[0] - expected).abs().max() > 1e-4:
        raise ConversionError(f"expected a fixed sine-cosine position embedding in {name}, got other values")
