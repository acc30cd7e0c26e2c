"""Position tables: resampling a learned table to another grid."""

import torch.nn.functional as F
from torch import Tensor


def resample_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resample a learned position table to another grid, bicubically and without antialiasing.

    This is the rule of `transformers.ViTModel(interpolate_pos_encoding=True)`, so that an exported backbone gives the same
    tokens as ours at every image size.

    Args:
        table: (h, w, C) learned positions.
        grid: (h', w') of the image at hand.
    Returns:
        (h', w', C); the table itself if the grid is its own.
    Differs: timm resamples with antialiasing; DINO and iBOT add 0.1 to the grid size before computing the scale.
    """
    if table.shape[:2] == grid:
        return table
    resampled = F.interpolate(table.permute(2, 0, 1)[None].float(), size=grid, mode="bicubic", align_corners=False)
    return resampled[0].permute(1, 2, 0).to(table.dtype)
