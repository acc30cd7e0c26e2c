"""Several auxiliary heads at once: together they differ more from the base than each alone."""

import torch
from torch import Tensor, nn

from hssl_hf.auxiliary.head import AuxiliaryHead
from hssl_hf.modules.tokens import Tokens


class CombinedHead(nn.Module):
    """Heads side by side behind the same features; their outputs are concatenated along the channels.

    Args:
        heads: at least two, by name.
    Source: HSSL, section 3.6, equations 9-10.
    """

    reads_image = False

    def __init__(self, heads: dict[str, AuxiliaryHead]):
        super().__init__()
        self.heads = nn.ModuleDict(heads)
        self.width = sum(head.width for head in heads.values())

    def forward(self, features: Tensor, patches: bool = True) -> Tokens:
        """As `AuxiliaryHead.forward`, with the channels of all heads; every head has normalized its own."""
        tokens = [head(features, patches) for head in self.heads.values()]
        cls = torch.cat([token.cls for token in tokens], dim=-1)
        return Tokens(cls, torch.cat([token.patches for token in tokens], dim=-1) if patches else None)
