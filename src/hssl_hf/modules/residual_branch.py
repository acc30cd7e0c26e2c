"""Residual branches that compute less and keep less, for the same result.

A sample whose branch is dropped is not computed at all. Of a norm or an activation in front of a linear layer only the input is
kept for the backward pass, which recomputes its output: two fifths less memory for a few percent of the time.
"""

from collections.abc import Callable
from functools import partial

import torch
from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class CheckpointedBlock(Block):
    """timm's transformer block, with its weights and its result."""

    @classmethod
    def replaces(cls, block: nn.Module) -> bool:
        """Whether a block is plain enough: layer norms, and an attention and an MLP without anything between their layers."""
        if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not Mlp:
            return False
        between = (block.attn.norm, block.mlp.norm, block.ls1, block.ls2)
        return (
            all(isinstance(norm, nn.LayerNorm) for norm in (block.norm1, block.norm2))
            and all(isinstance(module, nn.Identity) for module in between)
            and getattr(block.attn, "gate", None) is None  # timm 1.0.28 introduced it
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = residual_add(x, self.attend, self.drop_path1)
        return residual_add(x, partial(mlp_branch, self.norm2, self.mlp), self.drop_path2)

    def attend(self, x: Tensor) -> Tensor:
        attention = self.attn
        qkv = checkpointed(lambda x: attention.qkv(self.norm1(x)), x)
        q, k, v = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = attention.q_norm(q), attention.k_norm(k)
        if attention.fused_attn:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = torch.softmax((q * attention.scale) @ k.transpose(-2, -1), dim=-1).to(v.dtype) @ v
        return attention.proj(mixed.transpose(1, 2).flatten(2))


def use_checkpointed_blocks(blocks: nn.Module) -> None:
    """Let every timm block for which that is possible compute as a `CheckpointedBlock`; weights and names stay."""
    for block in blocks.modules():
        if CheckpointedBlock.replaces(block):
            block.__class__ = CheckpointedBlock


def residual_add(x: Tensor, branch: Callable[[Tensor], Tensor], drop_path: nn.Module, pool: tuple[int, ...] = ()) -> Tensor:
    """x + drop_path(branch(x)), without computing the samples that are dropped.

    Args:
        x: (B, ..., C).
        branch: of any number of samples, none included; no statistics over them.
        drop_path: a `DropPath`, or an identity.
        pool: axes over which the branch has taken the mean; taken of x too.
    """
    rate = getattr(drop_path, "drop_prob", 0.0) if drop_path.training else 0.0
    stem = x.mean(pool) if pool else x
    if not rate:
        return stem + branch(x)
    indices = torch.nonzero(torch.rand(len(x), device="cpu") >= rate).flatten()  # on the host: nothing waits for the device
    if len(indices) == len(x):
        return torch.add(stem, branch(x), alpha=1 / (1 - rate))
    indices = indices.to(x.device, non_blocking=True)
    return stem.index_add(0, indices, branch(x.index_select(0, indices)).to(stem.dtype), alpha=1 / (1 - rate))


def mlp_branch(norm: nn.Module, mlp: Mlp, x: Tensor, pool: tuple[int, ...] = ()) -> Tensor:
    """mlp(norm(x)), or its mean over the axes `pool`: the last layer is linear, so that it need only see the mean."""

    def project(hidden: Tensor) -> Tensor:
        hidden = mlp.act(hidden)
        return mlp.fc2(hidden.mean(pool) if pool else hidden)

    return checkpointed(project, checkpointed(lambda x: mlp.fc1(norm(x)), x))


def checkpointed(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x), of which only x is kept for the backward pass.

    The output of a linear layer at the end of the function is not recomputed, since the backward pass does not need it.
    """
    if not torch.is_grad_enabled():
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)
