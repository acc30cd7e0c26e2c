"""What is trained beside the base model: an auxiliary head, several heads together, or a second network on the image."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hssl_hf.modules.backbone import Backbone, run_blocks
from hssl_hf.modules.projection_heads import init_linear_layers
from hssl_hf.modules.tokens import Tokens

if TYPE_CHECKING:
    from hssl_hf.models.configuration_two_branch import TwoBranchConfig


class AuxiliaryHead(nn.Module):
    """A stack of blocks of one family, whose first residual shortcut is removed.

    Without that shortcut the head cannot pass the base's features on, so it has to describe the image in its own way. The
    image-level representation is the mean of the head's output map, for every family alike. Where `auxiliary_hidden_size`
    differs from the width, features are projected in and out linearly.

    Args:
        block: makes a block, as the class of its family does.
        config: its fields `auxiliary_...` describe the head.
        width: channels C of the base's features.
        grid: (h, w) of a global view.
        rates: drop-path rate of every block; none for 0.
    Source: HSSL, section 3 and Table 15; released code for pooling, norm and drop path.
    """

    reads_image = False

    def __init__(
        self, block: Callable[..., nn.Module], config: "TwoBranchConfig", width: int, grid: tuple[int, int], rates: list[float]
    ):
        super().__init__()
        self.width = width
        inner, depth = config.auxiliary_hidden_size or width, config.auxiliary_depth
        arguments = {"grid": grid, "sublayers": tuple(config.auxiliary_sublayers)}
        self.enter = nn.Identity() if inner == width else nn.Linear(width, inner)
        self.blocks = nn.ModuleList(
            block(inner, layer=i, shortcut=config.auxiliary_first_shortcut or i > 0, drop_path=rate, **arguments)
            for i, rate in enumerate(rates or [0.0] * depth)
        )
        self.leave = nn.Identity() if inner == width else nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.grad_checkpointing = False
        init_linear_layers(self, config.auxiliary_init)

    def forward(self, features: Tensor, patches: bool = True) -> Tokens:
        """
        Args:
            features: (B, h, w, C) patch features before the base's final norm.
            patches: whether the head's patches are needed; without them its last linear layers run on means alone.
        Returns:
            cls (B, C), and patches (B, h, w, C) or None.
        """
        last = self.blocks[-1] if patches else partial(self.blocks[-1], pool=(1, 2))
        hidden = self.leave(run_blocks([*self.blocks[:-1], last], self.enter(features), self.grad_checkpointing))
        if not patches:
            return Tokens(self.norm(hidden))
        return Tokens(self.norm(hidden.mean((1, 2))), self.norm(hidden))


class CombinedHead(nn.Module):
    """Heads side by side behind the same features: together they differ more from the base than each alone.

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


class ParallelNetwork(nn.Module):
    """Any timm model on the image, beside the base instead of behind it: the costly alternative.

    Args:
        backbone: the model; it sees unmasked views, also where the base sees masked ones.
    Source: HSSL, Table 17.
    """

    reads_image = True

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone, self.width = backbone, backbone.width

    def forward(self, pixels: Tensor, patches: bool = True) -> Tokens:
        """(B, 3, H, W) -> cls (B, C), and patches (B, h, w, C) or None."""
        tokens, _ = self.backbone(pixels)
        return tokens if patches else Tokens(tokens.cls)
