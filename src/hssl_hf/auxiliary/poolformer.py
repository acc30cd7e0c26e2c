"""PoolFormer (arXiv 2111.11418): 3×3 average pooling as token mixer, then an MLP."""

from timm.layers import DropPath, GroupNorm1, Mlp
from timm.models.metaformer import Pooling
from torch import Tensor, nn


class PoolFormerBlock(nn.Module):
    """
    Differs: no layer scale, since its tiny initial values would shrink a head without first shortcut to nothing.
    """

    def __init__(self, width: int, *, grid, layer: int, shortcut: bool, drop_path: float):
        super().__init__()
        self.norm1 = GroupNorm1(width)
        self.mixer = Pooling()
        self.norm2 = GroupNorm1(width)
        self.mlp = Mlp(width, 4 * width)
        self.drop_path = DropPath(drop_path)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixer(self.norm1(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        x = x + self.drop_path(y) if self.shortcut else y
        y = self.norm2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.drop_path(self.mlp(y))
