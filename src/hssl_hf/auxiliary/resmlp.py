"""ResMLP (arXiv 2105.03404): a linear layer across the patches as token mixer, then an MLP."""

import torch.nn.functional as F
from timm.models.mlp_mixer import Affine
from torch import Tensor, nn

from hssl_hf.auxiliary.mixer_block import SUBLAYERS, MixerBlock


class ResMLPBlock(MixerBlock):
    """
    The mixer has one weight per pair of patches of a global view. Other grids (local crops) are resized to that grid, mixed,
    and resized back; resizing the weights instead would not even keep an identity.

    Differs: no layer scale, since its tiny initial values would shrink a head without first shortcut to nothing.
    """

    def __init__(
        self, width: int, *, grid, layer: int, shortcut: bool, drop_path: float, sublayers: tuple[str, ...] = SUBLAYERS
    ):
        super().__init__(width, Affine, shortcut=shortcut, drop_path=drop_path, sublayers=sublayers)
        self.grid = tuple(grid)
        if self.mixes:
            self.norm1 = Affine(width)
            self.mixer = nn.Linear(grid[0] * grid[1], grid[0] * grid[1])

    def mix(self, x: Tensor) -> Tensor:
        y = resize(self.norm1(x), self.grid)
        y = self.mixer(y.flatten(1, 2).transpose(1, 2)).transpose(1, 2).unflatten(1, self.grid)
        return resize(y, x.shape[1:3])


def resize(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h, w, C) -> (B, *grid, C), bilinearly."""
    if tuple(x.shape[1:3]) == tuple(grid):
        return x
    return F.interpolate(x.permute(0, 3, 1, 2), size=tuple(grid), mode="bilinear").permute(0, 2, 3, 1)
