"""What the methods share whose student encodes the visible patches alone: who is hidden, and how such a base starts."""

import torch
from torch import Tensor, nn

from hssl_hf.modules.backbone import Backbone


def split(masks: Tensor, masked_indices: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B, h, w) masks with one count of hidden patches -> their positions (B, Q), and those of the others (B, K).

    Args:
        masked_indices: (B * Q,) positions of the hidden patches in the flattened masks; saves waiting for the device.
    Raises:
        ValueError: if images hide different numbers of patches.
    """
    masks = masks.flatten(1)
    if masked_indices is None:
        masked_indices = masks.flatten().nonzero().flatten()
        counts = masks.sum(1)
        if (counts != counts[0]).any():
            raise ValueError(
                f"every image must hide equally many patches, got {counts.tolist()}; use masks.shape=counted_block"
            )
    images, patches = masks.shape
    if len(masked_indices) % images:
        raise ValueError(f"{len(masked_indices)} hidden patches do not spread evenly over {images} images")
    hidden = masked_indices.view(images, -1) % patches
    kept = masks.int().argsort(dim=1, stable=True)[:, : patches - hidden.shape[1]]
    return hidden, kept


def require_transformer(base: Backbone, name: str) -> None:
    """Raise a ValueError if a base cannot leave patches out."""
    if not base.is_transformer:
        raise ValueError(f"this method needs a vision transformer with a class token, got {name!r}")


def prepare_base(base: Backbone) -> None:
    """Fixed positions and initial values of a vision transformer that has just been built."""
    base.model.apply(init_weights)
    nn.init.normal_(base.model.cls_token, std=0.02)
    base.fix_positions()
    projection = base.model.patch_embed.proj
    projection.reset_parameters()
    nn.init.xavier_uniform_(projection.weight.view(base.width, -1))


def init_weights(module: nn.Module) -> None:
    """Xavier bounds on matrices as they are stored, queries, keys and values together; biases 0.

    Source: released SiameseIM and MAE code.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def fill(visible: Tensor, kept: Tensor, grid: tuple[int, int], filler: Tensor) -> Tensor:
    """A dense map from the visible patches.

    Args:
        visible: (B, K, C) features of the visible patches.
        kept: (B, K) their positions.
        grid: (h, w).
        filler: (1, C), what stands at all other positions.
    Returns:
        (B, h, w, C).
    """
    images, _, width = visible.shape
    dense = filler.to(visible.dtype).expand(images, grid[0] * grid[1], width)
    dense = torch.scatter(dense, 1, kept[..., None].expand(-1, -1, width), visible)
    return dense.unflatten(1, tuple(grid))
