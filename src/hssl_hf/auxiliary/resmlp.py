"""ResMLP (arXiv 2105.03404): a linear layer across the patches as token mixer, then an MLP."""

from functools import partial

import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from timm.models.mlp_mixer import Affine
from torch import Tensor, nn

from hssl_hf.residual import add_branch, mlp_branch


class ResMLPBlock(nn.Module):
    """
    The mixer has one weight per pair of patches of a global view. Other grids (local crops) are resized to that grid, mixed,
    and resized back; resizing the weights instead would not even keep an identity.

    Differs: no layer scale, since its tiny initial values would shrink a head without first shortcut to nothing.
    """

    def __init__(self, width: int, *, grid, layer: int, shortcut: bool, drop_path: float):
        super().__init__()
        self.grid = tuple(grid)
        self.norm1 = Affine(width)
        self.mixer = nn.Linear(grid[0] * grid[1], grid[0] * grid[1])
        self.norm2 = Affine(width)
        self.mlp = Mlp(width, 4 * width)
        self.drop_path = DropPath(drop_path)
        self.shortcut = shortcut

    def forward(self, x: Tensor, pool: tuple[int, ...] = ()) -> Tensor:
        x = add_branch(x, self._mix, self.drop_path) if self.shortcut else self._mix(x)
        return add_branch(x, partial(mlp_branch, self.norm2, self.mlp, pool=pool), self.drop_path, pool)

    def _mix(self, x: Tensor) -> Tensor:
        y = resize(self.norm1(x), self.grid)
        y = self.mixer(y.flatten(1, 2).transpose(1, 2)).transpose(1, 2).unflatten(1, self.grid)
        return resize(y, x.shape[1:3])


def resize(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h, w, C) -> (B, *grid, C), bilinearly."""
    if tuple(x.shape[1:3]) == tuple(grid):
        return x
    return F.interpolate(x.permute(0, 3, 1, 2), size=tuple(grid), mode="bilinear").permute(0, 2, 3, 1)
