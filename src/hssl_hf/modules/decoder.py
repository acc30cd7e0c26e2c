"""Behind the encoder of masked image modeling: projector and decoder, stacks of transformer blocks."""

from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from hssl_hf.modules.backbone import run_blocks
from hssl_hf.modules.position_embeddings import relative_positions, sincos_position_embedding
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
    """Transformer blocks that read the visible patches and predict the patches at other positions.

    A mask query is the mask token plus a position embedding. Without relative positions it stands for a patch of the same view,
    as in MAE; with them for a patch of another view, located relative to the visible one.

    Args:
        grid: (h, w) patches of a view.
        width: channels C, divisible by 4.
        depth, heads, norm: of the blocks.
        output: channels of a prediction.
        relative: predict the patches of another view, by relative positions.
        predict_positions: use mask queries; without them the class token is predicted.
        final_norm: a layer norm before the prediction.
    Source: SiameseIM, equations 1-3; MAE, arXiv 2111.06377.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        width: int,
        depth: int,
        heads: int,
        norm: str,
        output: int,
        *,
        relative: bool = False,
        predict_positions: bool = True,
        final_norm: bool = False,
    ):
        super().__init__()
        self.grid, self.width = tuple(grid), width
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width)) if predict_positions else None
        self.position_projection = nn.Linear(2 * width, width) if predict_positions and relative else None
        self.blocks = make_blocks(width, depth, heads, norm)
        self.norm = nn.LayerNorm(width, eps=1e-6) if final_norm else nn.Identity()
        self.prediction = nn.Linear(width, output)
        self.register_buffer("positions", torch.empty(grid[0] * grid[1], width), persistent=False)
        self.init_non_persistent_buffers()
        self.grad_checkpointing = False

    def init_non_persistent_buffers(self) -> None:
        self.positions = sincos_position_embedding(self.grid, self.width).flatten(0, 1).to(self.positions.device)

    def forward(self, tokens: Tensor, visible_indices: Tensor, masked_indices=None, geometry=None) -> Tensor:
        """Predictions (B, Q or h * w, output), or (B, 1, output) without mask queries; arguments as in `hidden_states`."""
        return self.prediction(self.hidden_states(tokens, visible_indices, masked_indices, geometry))

    def hidden_states(
        self, tokens: Tensor, visible_indices: Tensor, masked_indices: Tensor | None = None, geometry: Tensor | None = None
    ) -> Tensor:
        """The last hidden states, of which predictions are a linear map.

        Args:
            tokens: (B, 1 + K, C), class token first.
            visible_indices: (B, K) positions of the visible patches.
            masked_indices: (B, Q) positions to predict, without relative positions.
            geometry: (B, 4) of `relative_geometry`, to predict all h * w patches of the other view.
        Returns:
            (B, Q or h * w, C); (B, 1, C) without mask queries.
        """
        stream = torch.cat([tokens[:, :1], tokens[:, 1:] + self.positions[visible_indices]], dim=1)
        predicted = slice(0, 1)
        if self.mask_token is not None:
            where = self.positions[masked_indices] if geometry is None else self.project_positions(geometry)
            stream = torch.cat([stream, (self.mask_token + where).to(stream.dtype)], dim=1)
            predicted = slice(-where.shape[1], None)
        last = partial(self.blocks[-1], returned=predicted)
        return self.norm(run_blocks([*self.blocks[:-1], last], stream, self.grad_checkpointing))

    def project_positions(self, geometry: Tensor) -> Tensor:
        """(B, 4) -> (B, h * w, C): the linear map of the relative positions, one component at a time."""
        weight = self.position_projection.weight
        components = [component.to(weight.dtype) for component in relative_positions(geometry, self.grid, self.width)]
        weights = weight.split([component.shape[-1] for component in components], dim=1)
        rows, columns, scale = (nn.functional.linear(component, w) for component, w in zip(components, weights, strict=True))
        scale = scale + self.position_projection.bias
        return (rows[:, :, None] + columns[:, None] + scale[:, None, None]).flatten(1, 2)


class DecoderBlock(Block):
    """A pre-norm transformer block that can return some of its tokens alone."""

    def forward(self, tokens: Tensor, returned: slice = slice(None)) -> Tensor:
        """(B, n, C) -> (B, m, C) of the returned tokens; its norms run over all, since batch statistics are of all."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens[:, returned] + self.mlp(self.norm2(tokens)[:, returned])


def make_blocks(width: int, depth: int, heads: int, norm: str) -> nn.ModuleList:
    """Transformer blocks with the given norm.

    Raises:
        ValueError: if the number of heads does not divide the width.
    """
    if width % heads:
        raise ValueError(
            f"expected decoder_num_attention_heads to divide the width {width} of the decoder, got {heads}; "
            "set decoder_num_attention_heads or decoder_hidden_size"
        )
    return nn.ModuleList(DecoderBlock(width, heads, qkv_bias=True, norm_layer=NORMS[norm]) for _ in range(depth))
