"""PoolFormer (arXiv 2111.11418): 3×3 average pooling as token mixer, then an MLP."""

from timm.layers import GroupNorm1
from timm.models.metaformer import Pooling
from torch import Tensor
from torch.nn.functional import layer_norm

from hssl_hf.auxiliary.mixer_block import MixerBlock


class MapNorm(GroupNorm1):
    """Group norm with one group of a map (B, h, w, C)."""

    def forward(self, x: Tensor) -> Tensor:
        # torch's group norm crashes on channels-last maps that need no gradient, up to torch 2.11.
        return layer_norm(x, x.shape[1:], eps=self.eps) * self.weight + self.bias


class PoolFormerBlock(MixerBlock):
    """
    Differs: no layer scale, since its tiny initial values would shrink a head without first shortcut to nothing.
    """

    make_norm = MapNorm

    def build_mixer(self, width: int, grid: tuple[int, int], layer: int) -> None:
        self.mixer = Pooling()

    def mix(self, x: Tensor) -> Tensor:
        return self.mixer(self.norm1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
