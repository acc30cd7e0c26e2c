"""ViT (arXiv 2010.11929): self-attention over all patches, then an MLP; the homogeneous control of the paper."""

from functools import partial

from timm.layers import DropPath, Mlp
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from hssl_hf.residual import add_branch, mlp_branch


class ViTBlock(nn.Module):
    """Pre-norm block over the patches, without class token and without positions of its own; one head per 64 channels."""

    def __init__(self, width: int, *, grid, layer: int, shortcut: bool, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, num_heads=attention_heads(width), qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)
        self.drop_path = DropPath(drop_path)
        self.shortcut = shortcut

    def forward(self, x: Tensor, pool: tuple[int, ...] = ()) -> Tensor:
        x = add_branch(x, self._attend, self.drop_path) if self.shortcut else self._attend(x)
        return add_branch(x, partial(mlp_branch, self.norm2, self.mlp, pool=pool), self.drop_path, pool)

    def _attend(self, x: Tensor) -> Tensor:
        return self.attention(self.norm1(x).flatten(1, 2)).view_as(x)


def attention_heads(width: int) -> int:
    """One head per 64 channels, or per 32 where 64 does not divide the width.

    Raises:
        ValueError: if neither divides it.
    """
    for channels in (64, 32):
        if width % channels == 0:
            return width // channels
    raise ValueError(f"an attention head needs a width that 64 or 32 divides, got {width}; set auxiliary_width")
