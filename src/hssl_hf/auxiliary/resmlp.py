"""ResMLP (arXiv 2105.03404): a linear layer across the patches as token mixer, then an MLP."""

import torch.nn.functional as F
from timm.models.mlp_mixer import Affine
from torch import Tensor, nn

from hssl_hf.auxiliary.mixer_block import MixerBlock


class ResMLPBlock(MixerBlock):
    """
    The mixer has one weight per pair of patches of a global view. Other grids (local crops) are resized to that grid, mixed,
    and resized back; resizing the weights instead would not even keep an identity.

    Differs: no layer scale, since its tiny initial values would shrink a head without first shortcut to nothing.
    """

    make_norm = Affine

    def build_mixer(self, width: int, grid: tuple[int, int], layer: int) -> None:
        self.grid = tuple(grid)
        self.mixer = nn.Linear(grid[0] * grid[1], grid[0] * grid[1])

    def mix(self, x: Tensor) -> Tensor:
        y = resize(self.norm1(x), self.grid)
        y = self.mixer(y.flatten(1, 2).transpose(1, 2)).transpose(1, 2).unflatten(1, self.grid)
        return resize(y, x.shape[1:3])


def resize(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h, w, C) -> (B, *grid, C), bilinearly."""
    if x.shape[1:3] == grid:
        return x
    return F.interpolate(x.permute(0, 3, 1, 2), size=grid, mode="bilinear").permute(0, 2, 3, 1)
