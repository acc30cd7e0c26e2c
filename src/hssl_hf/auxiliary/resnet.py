"""ResNet (arXiv 1512.03385): bottleneck convolutions; one residual, then a ReLU."""

import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from hssl_hf.auxiliary.mixer_block import SUBLAYERS
from hssl_hf.modules.projection_heads import BatchNorm


class ResNetBlock(nn.Module):
    """Bottleneck C -> C/4 -> C/4 -> C; batch norms use the batch of all processes, in the teacher its own batch."""

    def __init__(self, width: int, *, grid, layer: int, shortcut: bool, drop_path: float, sublayers=SUBLAYERS):
        super().__init__()
        if set(sublayers) != set(SUBLAYERS):
            raise ValueError(
                f"a ResNet block has no token mixer and MLP apart; leave auxiliary_sublayers at {list(SUBLAYERS)}, got "
                f"{list(sublayers)}"
            )
        if width < 4:
            raise ValueError(f"its bottleneck needs a width of at least 4, got {width}; set auxiliary_hidden_size")
        inner = width // 4
        self.layers = nn.Sequential(
            nn.Conv2d(width, inner, 1, bias=False),
            BatchNorm(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=1, bias=False),
            BatchNorm(inner),
            nn.ReLU(),
            nn.Conv2d(inner, width, 1, bias=False),
            BatchNorm(width),
        )
        self.drop_path = DropPath(drop_path)
        self.shortcut = shortcut

    def forward(self, x: Tensor, pool: tuple[int, ...] = ()) -> Tensor:
        y = self.layers(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = F.relu(x + self.drop_path(y) if self.shortcut else y)  # dropped samples are computed: they count in the norms
        return y.mean(pool) if pool else y
