"""PoolFormer (arXiv 2111.11418): 3×3 average pooling as token mixer, then an MLP."""

from functools import partial

from timm.layers import DropPath, GroupNorm1, Mlp
from timm.models.metaformer import Pooling
from torch import Tensor, nn

from hssl_hf.residual import add_branch, mlp_branch


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

    def forward(self, x: Tensor, pool: tuple[int, ...] = ()) -> Tensor:
        x = add_branch(x, self._mix, self.drop_path) if self.shortcut else self._mix(x)
        return add_branch(x, partial(mlp_branch, self._norm, self.mlp, pool=pool), self.drop_path, pool)

    def _mix(self, x: Tensor) -> Tensor:
        return self.mixer(self.norm1(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)

    def _norm(self, x: Tensor) -> Tensor:
        return self.norm2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
