"""PoolFormer (arXiv 2111.11418): 3×3 average pooling as token mixer, then an MLP."""

from timm.layers import GroupNorm1
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from hssl_hf.auxiliary.mixer_block import MixerBlock


class MapNorm(GroupNorm1):
    """Group norm with one group of a map (B, h, w, C)."""

    def forward(self, x: Tensor) -> Tensor:
        # torch's group norm crashes on channels-last maps that need no gradient, up to torch 2.11.
        return layer_norm(x, x.shape[1:], eps=self.eps) * self.weight + self.bias


class PoolFormerBlock(MixerBlock):
    """
    Args:
        minus_input: subtract the input of the pooling also where no shortcut adds it back.

    Differs: no layer scale, since its tiny initial values would shrink a head without first shortcut to nothing. PoolFormer
        subtracts the input of the pooling, which its shortcut adds back; where the first shortcut is removed, the pooling is
        plain, since otherwise the head would pass the base's own features on, with their sign reversed. The HSSL paper prints
        nothing about it.
    """

    make_norm = MapNorm

    def __init__(self, width: int, *, minus_input: bool = False, **arguments):
        super().__init__(width, **arguments)
        self.minus_input = minus_input or self.shortcut

    def build_mixer(self, width: int, grid: tuple[int, int], layer: int) -> None:
        self.mixer = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)

    def mix(self, x: Tensor) -> Tensor:
        x = self.norm1(x)
        pooled = self.mixer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return pooled - x if self.minus_input else pooled
