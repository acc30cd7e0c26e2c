"""What the families with two residuals share: a token mixer, then an MLP."""

from functools import partial

from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from hssl_hf.modules.residual_branch import mlp_branch, residual_add

SUBLAYERS = ("token_mixer", "mlp")


class MixerBlock(nn.Module):
    """x + mix(x), then x + mlp(norm(x)); a family defines `mix`, its norm included, from (B, h, w, C) to (B, h, w, C).

    Args:
        width: channels C.
        norm: makes the norm in front of the MLP, of (B, h, w, C).
        shortcut: keep the first residual of the block.
        drop_path: its rate.
        sublayers: "token_mixer" and "mlp", or one of them alone (Table 15).
    """

    def __init__(self, width: int, norm: type[nn.Module], *, shortcut: bool, drop_path: float, sublayers: tuple[str, ...]):
        super().__init__()
        self.mixes, self.shortcut = "token_mixer" in sublayers, shortcut
        self.drop_path = DropPath(drop_path)
        self.norm2 = norm(width) if "mlp" in sublayers else None
        self.mlp = Mlp(width, 4 * width) if "mlp" in sublayers else None

    def forward(self, x: Tensor, pool: tuple[int, ...] = ()) -> Tensor:
        """(B, h, w, C) -> the same, or its mean over the axes `pool`."""
        if self.mixes:
            x = residual_add(x, self.mix, self.drop_path) if self.shortcut else self.mix(x)
        if self.mlp is None:
            return x.mean(pool) if pool else x
        branch = partial(mlp_branch, self.norm2, self.mlp, pool=pool)
        return residual_add(x, branch, self.drop_path, pool) if self.mixes or self.shortcut else branch(x)
