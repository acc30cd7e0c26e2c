"""State dicts of official checkpoints: required tensors, renaming, strict loading."""

import torch
from torch import Tensor, nn

from hssl_hf.convert.official_checkpoint import ConversionError

BASE = ("cls_token", "pos_embed", "patch_embed.", "blocks.")  # of a vision transformer without its final norm
BASE_NAMES = {name: f"base.model.{name}" for name in BASE}


def base_arguments(state: dict[str, Tensor], num_heads: int | None, method: str = "SiameseIM") -> tuple[int, dict]:
    """Image size in pixels, and arguments that give timm's `vit_base_patch16_224` the shapes of a checkpoint.

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
    return side * patch, {"patch_size": patch, "embed_dim": width, "depth": count(state, "blocks"), "num_heads": heads}


def base_config(state: dict[str, Tensor], num_heads: int | None, method: str = "SiameseIM") -> dict:
    """Values of a configuration that describe the base; arguments and errors as in `base_arguments`."""
    image_size, kwargs = base_arguments(state, num_heads, method)
    return {"backbone": "vit_base_patch16_224", "backbone_kwargs": kwargs, "image_size": image_size}


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


def load_strict(model: nn.Module, state: dict[str, Tensor], official: dict[str, str], missing: set[str] = frozenset()) -> None:
    """Load weights, which must match the model in every name and shape.

    Args:
        state: weights by our names.
        official: our names -> those of the file, for the error message.
        missing: official names that are already known to be missing.
    Raises:
        ConversionError: with every tensor that is missing, unexpected or of another shape.
    """
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


def require_sincos_position_embedding(embedding: Tensor, positions: Tensor, name: str) -> None:
    """Raise a ConversionError unless an embedding (1, 1 + N, C) is zeros, then sine-cosine `positions` (N, C)."""
    expected = torch.cat([torch.zeros_like(positions[:1]), positions])
    if embedding.shape[1:] != expected.shape or (embedding[0] - expected).abs().max() > 1e-4:
        raise ConversionError(f"expected a fixed sine-cosine position embedding in {name}, got other values")
