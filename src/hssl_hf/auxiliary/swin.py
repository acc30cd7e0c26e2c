"""Swin (arXiv 2103.14030): self-attention in windows, shifted in every second block, then an MLP."""

import torch
import torch.nn.functional as F
from timm.layers import use_fused_attn
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor, nn

from hssl_hf.auxiliary.mixer_block import MixerBlock
from hssl_hf.auxiliary.vit import attention_heads

WINDOW = 7


class SwinBlock(MixerBlock):
    """Blocks 1, 3, ... shift their windows by half a window.

    A grid no larger than a window is one window of its own size, unshifted; a grid that windows do not divide is padded, and
    padding is never attended to. All window sizes read one table of relative positions.
    """

    make_norm = nn.LayerNorm

    def build_mixer(self, width: int, grid: tuple[int, int], layer: int) -> None:
        self.heads, self.shift = attention_heads(width), WINDOW // 2 if layer % 2 else 0
        self.fused_attn = use_fused_attn()
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.relative_bias = nn.Parameter(torch.zeros(self.heads, 2 * WINDOW - 1, 2 * WINDOW - 1))
        nn.init.trunc_normal_(self.relative_bias, std=0.02)

    def mix(self, x: Tensor) -> Tensor:
        x = self.norm1(x)
        height, width = x.shape[1:3]
        window = (min(WINDOW, height), min(WINDOW, width))
        shift = (0, 0) if min(height, width) <= WINDOW else (self.shift, self.shift)
        padded = [-(-size // side) * side for size, side in zip((height, width), window, strict=True)]
        regions = _regions((height, width), padded, window, shift, x.device)
        x = F.pad(x, (0, 0, 0, padded[1] - width, 0, padded[0] - height))
        windows = window_partition(x.roll((-shift[0], -shift[1]), (1, 2)), window).flatten(1, 2)
        windows = windows.unflatten(0, (len(x), -1))  # (B, n, wh * ww, C)
        q, k, v = self.qkv(windows).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        excluded = regions[:, None, :, None] != regions[:, None, None, :]  # (n, 1, wh * ww, wh * ww)
        bias = self._position_bias(window).to(q.dtype).masked_fill(excluded, float("-inf"))
        if self.fused_attn:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        else:
            out = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias[None], dim=-1).to(v.dtype) @ v
        out = self.project(out.transpose(2, 3).flatten(3)).flatten(0, 1).unflatten(1, window)
        return window_reverse(out, window, *padded).roll(shift, (1, 2))[:, :height, :width]

    def _position_bias(self, window: tuple[int, int]) -> Tensor:
        """(heads, wh * ww, wh * ww) biases of one window."""
        rows, columns = (torch.arange(side, device=self.relative_bias.device) for side in window)
        rows, columns = (i[:, None] - i[None, :] + WINDOW - 1 for i in (rows, columns))
        bias = self.relative_bias[:, rows[:, None, :, None], columns[None, :, None, :]]
        return bias.flatten(3).flatten(1, 2)


def _regions(size, padded, window, shift, device) -> Tensor:
    """(windows, wh * ww) numbers: patches may attend to each other only where these agree (same side of a wrap, no padding)."""
    rows, columns = (torch.arange(side, device=device) for side in padded)
    rows = torch.where(rows < size[0], (rows < shift[0]).long(), 2).roll(-shift[0])
    columns = torch.where(columns < size[1], (columns < shift[1]).long(), 2).roll(-shift[1])
    regions = rows[:, None] * 3 + columns
    return window_partition(regions[None, :, :, None], window).flatten(1)
