"""Behind the encoder of masked image modeling: projector and decoder, stacks of transformer blocks."""

from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from hssl_hf.modules.backbone import run_blocks
from hssl_hf.modules.position_embeddings import fixed_positions, relative_positions
from hssl_hf.modules.projection_heads import TokenBatchNorm

NORMS = {"batch": TokenBatchNorm, "layer": partial(nn.LayerNorm, eps=1e-6)}


class Projector(nn.Module):
    """A linear layer and transformer blocks on encoded tokens, the same in student and teacher.

    Args:
        width: channels of the base.
        inner: channels of projector and decoder.
        depth: blocks; 0 leaves the linear layer alone.
        heads: attention heads.
        norm: "batch" (over batch and tokens of all processes) or "layer".
    Source: SiameseIM, section 3.2; released code for the linear layer.
    """

    def __init__(self, width: int, inner: int, depth: int, heads: int, norm: str):
        super().__init__()
        self.embed = nn.Linear(width, inner)
        self.blocks = make_blocks(inner, depth, heads, norm)
        self.grad_checkpointing = False

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, n, width) -> (B, n, inner)."""
        return run_blocks(self.blocks, self.embed(tokens), self.grad_checkpointing)


class Decoder(nn.Module):
    """Transformer blocks that read the seen patches and answer for positions.

    A question is the mask token plus a position. Without relative positions it is asked about a patch of the seen view itself,
    by its fixed position, as in MAE; with them about a patch of another view, by where that lies in the frame of the seen one.

    Args:
        grid: (h, w) patches of a view.
        width: channels C, divisible by 4.
        depth, heads, norm: of the blocks.
        output: channels of a prediction.
        relative: relative positions.
        asks: whether there are questions at all; without them the class token is predicted.
        final_norm: a layer norm in front of the prediction.
    Source: SiameseIM, equations 1-3; MAE, arXiv 2111.06377.
    """

    def __init__(
        self, grid, width: int, depth: int, heads: int, norm: str, output: int, *, relative: bool, asks: bool, final_norm: bool
    ):
        super().__init__()
        self.grid, self.width = tuple(grid), width
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width)) if asks else None
        self.position_projection = nn.Linear(2 * width, width) if asks and relative else None
        self.blocks = make_blocks(width, depth, heads, norm)
        self.norm = nn.LayerNorm(width, eps=1e-6) if final_norm else nn.Identity()
        self.prediction = nn.Linear(width, output)
        self.register_buffer("positions", torch.empty(grid[0] * grid[1], width), persistent=False)
        self.init_non_persistent_buffers()
        self.grad_checkpointing = False

    def init_non_persistent_buffers(self) -> None:
        self.positions = fixed_positions(self.grid, self.width).flatten(0, 1).to(self.positions.device)

    def forward(self, tokens: Tensor, kept: Tensor, hidden: Tensor | None = None, geometry: Tensor | None = None) -> Tensor:
        """Answers (B, Q or h * w, output) to the questions of `hidden`; (B, 1, output) where nothing is asked."""
        return self.prediction(self.hidden(tokens, kept, hidden, geometry))

    def hidden(self, tokens: Tensor, kept: Tensor, hidden: Tensor | None = None, geometry: Tensor | None = None) -> Tensor:
        """The last hidden states, of which predictions are a linear map.

        Args:
            tokens: (B, 1 + K, C), class token first.
            kept: (B, K) positions of the seen patches.
            hidden: (B, Q) positions asked about without relative positions.
            geometry: (B, 4) of `relative_geometry`, to ask about all h * w patches of the other view.
        Returns:
            (B, Q or h * w, C); (B, 1, C) where nothing is asked.
        """
        stream = torch.cat([tokens[:, :1], tokens[:, 1:] + self.positions[kept]], dim=1)
        answers = slice(0, 1)
        if self.mask_token is not None:
            where = self.positions[hidden] if geometry is None else self.project(geometry)
            stream = torch.cat([stream, (self.mask_token + where).to(stream.dtype)], dim=1)
            answers = slice(-where.shape[1], None)
        stream = run_blocks(self.blocks[:-1], stream, self.grad_checkpointing)
        return self.norm(_last_block(self.blocks[-1], stream, answers))

    def project(self, geometry: Tensor) -> Tensor:
        """(B, 4) -> (B, h * w, C): the linear map of the relative positions, one part at a time."""
        parts = relative_positions(geometry, self.grid, self.width)
        weights = self.position_projection.weight.split([part.shape[-1] for part in parts], dim=1)
        rows, columns, scale = (nn.functional.linear(part, weight) for part, weight in zip(parts, weights, strict=True))
        scale = scale + self.position_projection.bias
        return (rows[:, :, None] + columns[:, None] + scale[:, None, None]).flatten(1, 2)


def make_blocks(width: int, depth: int, heads: int, norm: str) -> nn.ModuleList:
    """Pre-norm transformer blocks with the given norm.

    Raises:
        ValueError: if the heads do not divide the width.
    """
    if width % heads:
        raise ValueError(f"{heads} attention heads do not divide a width of {width}; set decoder_heads")
    return nn.ModuleList(Block(width, heads, qkv_bias=True, norm_layer=NORMS[norm]) for _ in range(depth))


def _last_block(block: nn.Module, stream: Tensor, wanted: slice) -> Tensor:
    """The block for the wanted tokens only. Its second norm still runs over all, since batch statistics are of all tokens."""
    stream = stream + block.attn(block.norm1(stream))
    return stream[:, wanted] + block.mlp(block.norm2(stream)[:, wanted])
