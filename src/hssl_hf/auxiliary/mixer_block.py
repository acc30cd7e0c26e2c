"""What the families with two residuals share: a token mixer, then an MLP."""

from functools import partial

from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from hssl_hf.modules.residual_branch import add_branch, mlp_branch

PARTS = ("mixer", "mlp")


class MixerBlock(nn.Module):
    """x + mix(x), then x + mlp(norm(x)); a family defines `mix`, its norm included, from (B, h, w, C) to (B, h, w, C).

    Args:
        width: channels C.
        norm: makes the norm in front of the MLP, of (B, h, w, C).
        shortcut: keep the first residual of the block.
        drop_path: its rate.
        parts: "mixer" and "mlp", or one of them alone (Table 15).
    """

    def __init__(self, width: int, norm: type[nn.Module], *, shortcut: bool, drop_path: float, parts: tuple[str, ...]):
        super().__init__()
        self.mixes, self.shortcut = "mixer" in parts, shortcut
        self.drop_path = DropPath(drop_path)
        self.norm2 = norm(width) if "mlp" in parts else None
        self.mlp = Mlp(width, 4 * width) if "mlp" in parts else None

    def forward(self, x: Tensor, pool: tuple[int, ...] = ()) -> Tensor:
        """(B, h, w, C) -> the same, or its mean over the axes `pool`."""
        if self.mixes:
            x = add_branch(x, self.mix, self.drop_path) if self.shortcut else self.mix(x)
        if self.mlp is None:
            return x.mean(pool) if pool else x
        branch = partial(mlp_branch, self.norm2, self.mlp, pool=pool)
        return add_branch(x, branch, self.drop_path, pool) if self.mixes or self.shortcut else branch(x)
