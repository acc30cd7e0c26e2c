"""ViT (arXiv 2010.11929): self-attention over all patches, then an MLP; the homogeneous control of the paper."""

from functools import partial

from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from hssl_hf.auxiliary.mixer_block import MixerBlock


class ViTBlock(MixerBlock):
    """Pre-norm block over the patches, without class token and without positions of its own; one head per 64 channels."""

    make_norm = staticmethod(partial(nn.LayerNorm, eps=1e-6))

    def build_mixer(self, width: int, grid: tuple[int, int], layer: int) -> None:
        self.attention = Attention(width, num_heads=attention_heads(width), qkv_bias=True)

    def mix(self, x: Tensor) -> Tensor:
        return self.attention(self.norm1(x).flatten(1, 2)).view_as(x)


def attention_heads(width: int) -> int:
    """One head per 64 channels, or per 32 where 64 does not divide the width.

    Raises:
        ValueError: if neither divides it.
    """
    for channels in (64, 32):
        if width % channels == 0:
            return width // channels
    raise ValueError(f"its attention heads need a width divisible by 64 or 32, got {width}; set auxiliary_hidden_size")
