"""What the families with two residuals share: a token mixer, then an MLP."""

from collections.abc import Callable
from functools import partial

from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from hssl_hf.modules.residual_branch import mlp_branch, residual_add

SUBLAYERS = ("token_mixer", "mlp")


class MixerBlock(nn.Module):
    """x + mix(x), then x + mlp(norm2(x)).

    A family defines `make_norm`, for channels-last maps, `build_mixer`, and `mix`, which applies `norm1` and the mixer to
    (B, h, w, C).

    Args:
        width: channels C.
        grid: (h, w) of a global view.
        layer: number of the block within its head, from 0.
        shortcut: keep the first residual of the block.
        drop_path: its rate.
        sublayers: "token_mixer" and "mlp", or one of them alone (Table 15).
    """

    make_norm: Callable[[int], nn.Module]

    def __init__(self, width: int, *, grid, layer: int, shortcut: bool, drop_path: float, sublayers=SUBLAYERS):
        super().__init__()
        self.mixes, self.shortcut = "token_mixer" in sublayers, shortcut
        self.drop_path = DropPath(drop_path)
        self.norm2 = self.make_norm(width) if "mlp" in sublayers else None
        self.mlp = Mlp(width, 4 * width) if "mlp" in sublayers else None
        if self.mixes:
            self.norm1 = self.make_norm(width)
            self.build_mixer(width, grid, layer)

    def forward(self, x: Tensor, pool: tuple[int, ...] = ()) -> Tensor:
        """(B, h, w, C) -> the same, or its mean over the axes `pool`."""
        if self.mixes:
            x = residual_add(x, self.mix, self.drop_path) if self.shortcut else self.mix(x)
        if self.mlp is None:
            return x.mean(pool) if pool else x
        branch = partial(mlp_branch, self.norm2, self.mlp, pool=pool)
        return residual_add(x, branch, self.drop_path, pool) if self.mixes or self.shortcut else branch(x)
