"""State dicts of official checkpoints: what has to be there, renamed, and loaded to the last tensor."""

import torch
from torch import Tensor, nn

from hssl_hf.convert.official_checkpoint import ConversionError


def base_arguments(state: dict[str, Tensor], num_heads: int | None, method: str = "SiameseIM") -> tuple[int, dict]:
    """Image size, and what makes `vit_base_patch16_224` a transformer of the state's shape.

    Args:
        num_heads: None for 16 at a width of 1280, else one for every 64 channels.
        method: for the message.
    """
    width, _, patch, _ = require_tensor(state, "patch_embed.proj.weight", 4, method).shape
    side = round((require_tensor(state, "pos_embed", 3, method).shape[1] - 1) ** 0.5)
    heads = num_heads or max(1, 16 if width == 1280 else width // 64)
    if width % heads:
        raise ConversionError(f"{heads} attention heads do not divide the width {width} of this checkpoint")
    return side * patch, {"patch_size": patch, "embed_dim": width, "depth": count(state, "blocks"), "num_heads": heads}


def require_tensor(state: dict[str, Tensor], name: str, axes: int, method: str = "SiameseIM") -> Tensor:
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


def strip_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What stands under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def rename(name: str, table: dict[str, str]) -> str:
    """A name by a table of names, and of beginnings that end with a dot."""
    for old, new in table.items():
        if name == old or (old.endswith(".") and name.startswith(old)):
            return new + name[len(old) :]
    return name


def load_strict(model: nn.Module, state: dict[str, Tensor], official: dict[str, str], missing: set[str] = frozenset()) -> None:
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


def require_sincos_position_embedding(found: Tensor, positions: Tensor, name: str) -> None:
    """Raise a ConversionError if a table (1, 1 + N, C) is not that of sines and cosines (N, C), with zeros in front."""
    expected = torch.cat([torch.zeros_like(positions[:1]), positions])
    if found.shape[1:] != expected.shape or (found[0] - expected).abs().max() > 1e-4:
        raise ConversionError(f"{name} is not the fixed table of sines and cosines that it should be")
