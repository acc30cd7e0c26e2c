"""Position tables: fixed sines and cosines, those of one view in the frame of another, and resampling of learned tables."""

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_SCALE_FACTOR = 10.0


def interpolate_position_embedding(table: Tensor, grid: tuple[int, int]) -> Tensor:
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


def sinusoid(values: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of values at frequencies 10000^(-k / (width/2)): (...) -> (..., width), width even."""
    precise = torch.float32 if values.device.type == "mps" else torch.float64  # Apple's devices have no double precision
    exponents = torch.arange(width // 2, device=values.device, dtype=precise) / (width // 2)
    angles = values.to(precise)[..., None] * 10000.0**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


def sincos_position_embedding(grid: tuple[int, int], width: int) -> Tensor:
    """Fixed positions of the patches of a grid, rows before columns.

    Args:
        grid: (h, w) in patches.
        width: channels C, divisible by 4.
    Returns:
        (h, w, C): sines and cosines of the row in the first half of the channels, those of the column in the second.
    Raises:
        ValueError: if 4 does not divide the width.
    Source: released SiameseIM code, which swaps the two halves of MAE's table.
    """
    if width % 4:
        raise ValueError(f"fixed positions need a width divisible by 4, got {width}")
    rows, columns = (sinusoid(torch.arange(side), width // 2) for side in grid)
    return torch.cat([rows[:, None].expand(*grid, -1), columns[None].expand(*grid, -1)], dim=-1)


def relative_geometry(visible: Tensor, target: Tensor) -> Tensor:
    """The position of one crop of an image in the frame of another crop.

    Args:
        visible, target: (..., 5) top, left, height, width in pixels of the unflipped image, and 1 where the crop is flipped.
    Returns:
        (..., 4) offset y, offset x in sides of the visible crop, ratio y, ratio x of the sides target / visible; a point at the
        fraction (t, s) of the target crop is at (offset y + ratio y * t, offset x + ratio x * s) of the visible one. A negative
        ratio x means that one of the two is flipped.
    Source: SiameseIM, equations 2 and 3.
    Differs: the paper is silent about flips; here they are exact, as in the released code.
    """
    top, left, height, width, flipped = visible.float().unbind(-1)
    top2, left2, height2, width2, flipped2 = target.float().unbind(-1)
    start = left2 + flipped2 * width2  # the column of the target crop's own left border
    direction = 1 - 2 * flipped2
    along = torch.where(flipped > 0, left + width - start, start - left) / width
    ratio = torch.where(flipped > 0, -direction, direction) * width2 / width
    return torch.stack([(top2 - top) / height, along, height2 / height, ratio], dim=-1)


def relative_coordinates(geometry: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Centers of the patches of the target view, in patches of the visible one: (..., 4) -> rows (..., h), columns (..., w).

    0 is the center of the visible view's first patch. Both views have the same grid.

    Source: SiameseIM, equation 2.
    Differs: the paper maps the corners of patches, the released code their centers.
    """
    coordinates = []
    for axis, side in enumerate(grid):
        fractions = (torch.arange(side, device=geometry.device) + 0.5) / side
        coordinates.append(side * (geometry[..., axis, None] + geometry[..., 2 + axis, None] * fractions) - 0.5)
    return coordinates[0], coordinates[1]


def relative_positions(geometry: Tensor, grid: tuple[int, int], width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of rows, columns and scale; the position of patch (u, v) is [rows[u] | columns[v] | scale], 2C channels.

    The three components are kept apart, since a linear map of their concatenation is the sum of maps of the components, of
    h + w + 1 vectors instead of h * w.

    Args:
        geometry: (B, 4) of `relative_geometry`.
        grid: (h, w) in patches.
        width: C, divisible by 4.
    Returns:
        rows (B, h, C/2), columns (B, w, C/2), scale (B, C).
    Source: SiameseIM, equation 3; the scale is 10 times the logarithm of the ratios.
    """
    rows, columns = relative_coordinates(geometry, grid)
    scales = LOG_SCALE_FACTOR * geometry[..., 2:].abs().log()
    half = width // 2
    return sinusoid(rows, half), sinusoid(columns, half), sinusoid(scales, half).flatten(-2)
