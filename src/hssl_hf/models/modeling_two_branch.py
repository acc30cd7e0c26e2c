"""The network of student and teacher: a base model, the auxiliary head, and the projection heads of the objective."""

import torch
from torch import Tensor, nn

from hssl_hf.auxiliary import AuxiliaryHead, CombinedHead, ParallelNetwork, build_head
from hssl_hf.models.configuration_hssl import HSSLConfig
from hssl_hf.models.configuration_two_branch import TwoBranchConfig
from hssl_hf.modules.backbone import Backbone
from hssl_hf.modules.tokens import Branches, Tokens
from hssl_hf.modules.visible_patches import split_patches
from hssl_hf.objectives.supervision import Objective

Auxiliary = AuxiliaryHead | CombinedHead | ParallelNetwork


class TwoBranchNetwork(nn.Module):
    """A base model, the auxiliary head behind it, and the projection heads of the objective.

    Each is built from a seed of its own, so that they do not change each other's initial values.

    Raises:
        ValueError: for modules that do not fit each other.
    """

    def __init__(self, config: HSSLConfig, objective: Objective):
        super().__init__()
        self.auxiliary_patches, self.visible_patches_only = config.supervises_auxiliary_patches, config.visible_patches_only
        seeds = torch.randint(2**62, (3,), device="cpu").tolist()
        with torch.random.fork_rng():
            torch.manual_seed(seeds[0])
            self.base = build_base(config, mask_token=bool(config.patch_supervision))
            self.auxiliary = build_auxiliary(config, self.base, seeds[1])
            self.shallow = None if config.shallow_block is None else ShallowBlock(self.base, config.shallow_block)
            if self.auxiliary_patches and self.auxiliary.reads_image and self.auxiliary.backbone.grid != self.base.grid:
                raise ValueError(
                    f"patch_supervision between networks needs one grid, but the base has {self.base.grid} patches and the "
                    f"parallel network {self.auxiliary.backbone.grid}; supervise the image level alone"
                )
            modules = {"base": self.base, "auxiliary": self.auxiliary, "shallow": self.shallow}
            widths = {name: module.width for name, module in modules.items() if module is not None}
            torch.manual_seed(seeds[2])
            self.heads = objective.make_heads(widths)

    def forward(self, pixels: Tensor, bool_masked_pos: Tensor | None = None, mask_indices: Tensor | None = None) -> Branches:
        """(V, B, 3, H, W) views, (V, B, h, w) mask and (M,) masked positions in it -> tokens with the same two leading axes."""
        views, pixels = pixels.shape[:2], pixels.flatten(0, 1)
        mask = None if bool_masked_pos is None else bool_masked_pos.flatten(0, 1)
        return self._branches(pixels, mask, mask_indices).map(lambda x: x.unflatten(0, views))

    def _branches(self, pixels: Tensor, mask: Tensor | None, mask_indices: Tensor | None) -> Branches:
        if self.shallow is not None:
            return self.shallow(self.base, pixels)
        if self.visible_patches_only and mask is not None:
            tokens, _ = self.base.encode_visible(pixels, split_patches(mask, mask_indices)[1])
            return Branches(Tokens(tokens.cls))
        tokens, features = self.base(pixels, mask)
        if self.auxiliary is None:
            return Branches(tokens)
        return Branches(tokens, self.auxiliary(pixels if self.auxiliary.reads_image else features, self.auxiliary_patches))


class ShallowBlock(nn.Module):
    """The class token behind an early block of the base, which its last block supervises.

    Args:
        base: a vision transformer with a class token.
        block: behind which, counted from 1.
    Raises:
        ValueError: if there is no such block in front of the last.
    Source: HSSL, Table 19; deep-to-shallow supervision, arXiv 2106.03149.
    """

    def __init__(self, base: Backbone, block: int):
        super().__init__()
        blocks = len(base.model.blocks) if base.is_transformer else 0
        if not 0 < block < blocks:
            raise ValueError(
                f"shallow_block={block}: expected one before the last block of a vision transformer, got {blocks} blocks"
            )
        self.block, self.width, self.norm = block, base.width, nn.LayerNorm(base.width, eps=1e-6)

    def forward(self, base: Backbone, pixels: Tensor) -> Branches:
        """(B, 3, H, W) -> class tokens (B, C) of the base and of the block."""
        hidden = [states[:, 0] for states in base.hidden_states(pixels)]
        return Branches(Tokens(base.norm(hidden[-1])), shallow=Tokens(self.norm(hidden[self.block])))


def build_base(config: TwoBranchConfig, mask_token: bool = False) -> Backbone:
    """The base model of a configuration; its drop path rises over base and head together."""
    following = config.auxiliary_depth if config.families and config.auxiliary_connection == "serial" else 0
    base = Backbone(config.backbone, config.image_size, config.backbone_kwargs, config.drop_path_rate, following, mask_token)
    if (config.sincos_position_embeddings or config.freeze_patch_embed) and not base.is_transformer:
        raise ValueError(
            f"sincos_position_embeddings and freeze_patch_embed are for vision transformers, got {config.backbone!r}"
        )
    if config.sincos_position_embeddings:
        base.use_sincos_position_embedding()
    _init_class_token(base, config, config.backbone_kwargs or {})
    return base


def _init_class_token(base: Backbone, config: TwoBranchConfig, kwargs: dict) -> None:
    """Standard deviation .02, as in DINO, iBOT, HSSL and MAE; MoCo v3 keeps timm's 1e-6, and weights that timm loads stay."""
    loaded = kwargs.get("pretrained") or kwargs.get("checkpoint_path")
    if base.is_transformer and not loaded and getattr(config, "objective", None) != "moco_v3":
        nn.init.trunc_normal_(base.model.cls_token, std=0.02)


def build_auxiliary(config: TwoBranchConfig, base: Backbone, seed: int) -> Auxiliary | None:
    """What is trained beside the base. The first of several heads starts from the same values as it would alone."""
    if config.auxiliary is None:
        return None
    if config.auxiliary_connection == "parallel":
        torch.manual_seed(seed)
        channels = {"in_chans": config.num_channels}
        network = Backbone(config.families[0], config.image_size, channels, config.drop_path_rate)
        _init_class_token(network, config, channels)
        return ParallelNetwork(network)
    heads = {}
    for number, family in enumerate(config.families):
        torch.manual_seed(seed + number)
        heads[family] = build_head(family, config, base.width, base.grid, base.rates)
    return CombinedHead(heads) if len(heads) > 1 else heads[config.families[0]]
