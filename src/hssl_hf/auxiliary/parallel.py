"""A second network on the image instead of a head behind the base: the costly alternative."""

from torch import Tensor, nn

from hssl_hf.modules.backbone import Backbone
from hssl_hf.modules.tokens import Tokens


class ParallelNetwork(nn.Module):
    """Any timm model beside the base.

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
