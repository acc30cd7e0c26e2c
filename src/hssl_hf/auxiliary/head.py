"""The auxiliary head: features of the base model -> blocks of another architecture -> tokens of its own."""

from functools import partial

from torch import Tensor, nn

from hssl_hf.auxiliary.mixer_block import SUBLAYERS
from hssl_hf.modules.backbone import run_blocks
from hssl_hf.modules.tokens import Tokens


class AuxiliaryHead(nn.Module):
    """A stack of blocks of one family, whose first residual shortcut is removed.

    Without that shortcut the head cannot pass the base's features on, so it has to describe the image in its own way. The
    image-level representation is the mean of the head's output map, for every family alike.

    Args:
        block: the block class.
        width: channels C of the base's features.
        depth: number of blocks D, at least 1.
        grid: (h, w) of a global view.
        first_shortcut: keep the first shortcut (an ablation).
        inner_width: channels inside the head, None for C; projected in and out linearly where it differs.
        rates: drop-path rate of every block.
        init: "trunc_normal" (standard deviation .02, as released) or "xavier", which suits widths far below 768, where .02 is
            much too small for a head without first shortcut.
        sublayers: of every block, "token_mixer" and "mlp" or one of them alone (Table 15).
    Source: HSSL, section 3 and Table 15; released code for pooling, norm and drop path.
    """

    reads_image = False

    def __init__(
        self,
        block: type[nn.Module],
        width: int,
        depth: int,
        grid: tuple[int, int],
        *,
        first_shortcut: bool = False,
        inner_width: int | None = None,
        rates: list[float] | None = None,
        init: str = "trunc_normal",
        sublayers: tuple[str, ...] = SUBLAYERS,
    ):
        super().__init__()
        self.width = width
        inner, rates = inner_width or width, rates or [0.0] * depth
        self.enter = nn.Identity() if inner == width else nn.Linear(width, inner)
        self.blocks = nn.ModuleList(
            block(inner, grid=grid, layer=i, shortcut=first_shortcut or i > 0, drop_path=rates[i], sublayers=tuple(sublayers))
            for i in range(depth)
        )
        self.leave = nn.Identity() if inner == width else nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.grad_checkpointing = False
        self.apply(partial(_init_weights, init=init))

    def forward(self, features: Tensor, patches: bool = True) -> Tokens:
        """
        Args:
            features: (B, h, w, C) patch features before the base's final norm.
            patches: whether the head's patches are needed; without them its last linear layers run on means alone.
        Returns:
            cls (B, C), and patches (B, h, w, C) or None.
        """
        last = self.blocks[-1] if patches else partial(self.blocks[-1], pool=(1, 2))
        blocks = [*self.blocks[:-1], last]
        hidden = self.leave(run_blocks(blocks, self.enter(features), self.grad_checkpointing))
        if not patches:
            return Tokens(self.norm(hidden))
        return Tokens(self.norm(hidden.mean((1, 2))), self.norm(hidden))


def _init_weights(module: nn.Module, init: str) -> None:
    if isinstance(module, nn.Linear):
        if init == "xavier":
            nn.init.xavier_uniform_(module.weight)
        else:
            nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
