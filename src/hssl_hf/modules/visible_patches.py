"""Encoding visible patches only: which patches are masked, how the base is initialized, and dense maps of visible patches."""

from torch import Tensor, nn

from hssl_hf.modules.backbone import Backbone
from hssl_hf.modules.projection_heads import init_linear_layers


def split_patches(bool_masked_pos: Tensor, mask_indices: Tensor | None) -> tuple[Tensor, Tensor]:
    """Positions of masked and visible patches.

    Args:
        bool_masked_pos: (B, h, w) bool, True = masked, with as many masked patches in every image.
        mask_indices: (B * Q,) positions of the masked patches in the flattened mask; avoids waiting for the device.
    Returns:
        masked_indices (B, Q) and visible_indices (B, K).
    Raises:
        ValueError: if images have different numbers of masked patches.
    """
    mask = bool_masked_pos.flatten(1)
    if mask_indices is None:
        mask_indices = mask.flatten().nonzero().flatten()
        counts = mask.sum(1)
        if (counts != counts[0]).any():
            raise ValueError(
                f"expected as many masked patches in every image, got {counts.tolist()}; use masks.shape=fixed_count_block"
            )
    images, patches = mask.shape
    if len(mask_indices) % images:
        raise ValueError(f"expected as many masked patches in each of {images} images, got {len(mask_indices)} altogether")
    masked_indices = mask_indices.view(images, -1) % patches
    visible_indices = mask.int().argsort(dim=1, stable=True)[:, : patches - masked_indices.shape[1]]
    return masked_indices, visible_indices


def prepare_base(base: Backbone, name: str) -> None:
    """Initialize a vision transformer that encodes visible patches, with fixed position embeddings.

    Args:
        name: of the timm model.
    Raises:
        ValueError: if it is no vision transformer with a class token, and cannot leave patches out.
    """
    if not base.is_transformer:
        raise ValueError(f"this method needs a vision transformer with a class token, got {name!r}")
    init_linear_layers(base.model, "xavier")
    nn.init.normal_(base.model.cls_token, std=0.02)
    base.use_sincos_position_embedding()
    projection = base.model.patch_embed.proj
    projection.reset_parameters()
    nn.init.xavier_uniform_(projection.weight.view(base.width, -1))


def scatter_visible(visible: Tensor, visible_indices: Tensor, grid: tuple[int, int], filler: Tensor) -> Tensor:
    """A dense map from the visible patches.

    Args:
        visible: (B, K, C) features of the visible patches.
        visible_indices: (B, K) their positions.
        grid: (h, w).
        filler: (1, C) at all masked positions.
    Returns:
        (B, h, w, C).
    """
    images, _, width = visible.shape
    dense = filler.to(visible.dtype).expand(images, grid[0] * grid[1], width)
    return dense.scatter(1, visible_indices[..., None].expand(-1, -1, width), visible).unflatten(1, grid)
