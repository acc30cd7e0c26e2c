"""Auxiliary heads: shallow networks of another architecture behind the base model.

A family is a block `Block(width, *, grid, layer, shortcut, drop_path, sublayers)` from (B, h, w, C) to (B, h, w, C). To add
one, write its file and name it here and in `FAMILIES` of `models/configuration_two_branch.py`.
"""

from functools import partial
from typing import TYPE_CHECKING

from hssl_hf.auxiliary.convnext import ConvNeXtBlock
from hssl_hf.auxiliary.head import AuxiliaryHead, CombinedHead, ParallelNetwork
from hssl_hf.auxiliary.poolformer import PoolFormerBlock
from hssl_hf.auxiliary.resmlp import ResMLPBlock
from hssl_hf.auxiliary.resnet import ResNetBlock
from hssl_hf.auxiliary.swin import SwinBlock
from hssl_hf.auxiliary.vit import ViTBlock

if TYPE_CHECKING:
    from hssl_hf.models.configuration_two_branch import TwoBranchConfig

BLOCKS = {
    "convnext": ConvNeXtBlock,
    "poolformer": PoolFormerBlock,
    "resmlp": ResMLPBlock,
    "resnet": ResNetBlock,
    "swin": SwinBlock,
    "vit": ViTBlock,
}

__all__ = ["BLOCKS", "AuxiliaryHead", "CombinedHead", "ParallelNetwork", "build_head"]


def build_head(family: str, config: "TwoBranchConfig", *arguments) -> AuxiliaryHead:
    """A head of a family; arguments as those of `AuxiliaryHead`.

    Raises:
        ValueError: if the family cannot take a value, such as the width.
    """
    block = BLOCKS[family]
    if family == "poolformer":
        block = partial(block, minus_input=config.auxiliary_pooling == "minus_input")
    try:
        return AuxiliaryHead(block, config, *arguments)
    except ValueError as error:
        raise ValueError(f"the auxiliary head {family!r} cannot be built: {error}") from error
