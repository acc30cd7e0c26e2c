"""ConvNeXt (arXiv 2201.03545): depth-wise 7×7 convolution, norm, MLP; one residual."""

from functools import partial

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from hssl_hf.auxiliary.mixer_block import SUBLAYERS
from hssl_hf.modules.residual_branch import mlp_branch, residual_add


class ConvNeXtBlock(nn.Module):
    """
    Differs: no layer scale and a norm with epsilon 1e-5, as in the released HSSL code.
    """

    def __init__(self, width: int, *, grid, layer: int, shortcut: bool, drop_path: float, sublayers=SUBLAYERS):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width) if "token_mixer" in sublayers else None
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.mlp = Mlp(width, 4 * width) if "mlp" in sublayers else None
        self.drop_path = DropPath(drop_path)
        self.shortcut = shortcut

    def forward(self, x: Tensor, pool: tuple[int, ...] = ()) -> Tensor:
        branch = partial(self._branch, pool=pool)
        return residual_add(x, branch, self.drop_path, pool) if self.shortcut else branch(x)

    def _branch(self, x: Tensor, pool: tuple[int, ...]) -> Tensor:
        if self.mlp is not None:
            return mlp_branch(self._mix, self.mlp, x, pool)
        return self._mix(x).mean(pool) if pool else self._mix(x)

    def _mix(self, x: Tensor) -> Tensor:
        if self.depthwise is None:
            return self.norm(x)
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):  # the weights' gradient takes thrice as long in bf16
            with torch.autocast("cpu", enabled=False):
                y = self.depthwise(x.float().permute(0, 3, 1, 2))
        else:
            y = self.depthwise(x.permute(0, 3, 1, 2))
        return self.norm(y.permute(0, 2, 3, 1))
