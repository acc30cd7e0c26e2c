"""ConvNeXt (arXiv 2201.03545): depth-wise 7×7 convolution, norm, MLP; one residual."""

from timm.layers import DropPath, Mlp
from torch import Tensor, nn


class ConvNeXtBlock(nn.Module):
    """
    Differs: no layer scale and a norm with epsilon 1e-5, as in the released HSSL code.
    """

    def __init__(self, width: int, *, grid, layer: int, shortcut: bool, drop_path: float):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.mlp = Mlp(width, 4 * width)
        self.drop_path = DropPath(drop_path)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = self.mlp(self.norm(y))
        return x + self.drop_path(y) if self.shortcut else y
