"""The base model: any timm model -> tokens.

A final norm that timm applies inside `forward_features` is taken out and applied here, because the auxiliary head reads the
features in front of it. Vision transformers run block by block, so that patches can be masked or left out.
"""

import difflib
import json
from collections.abc import Iterable, Iterator
from functools import cache, partial
from itertools import accumulate

import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hssl_hf.modules.position_embeddings import interpolate_position_embedding, sincos_position_embedding
from hssl_hf.modules.residual_branch import use_checkpointed_blocks
from hssl_hf.modules.tokens import Tokens


class Backbone(nn.Module):
    """A timm model without classifier.

    Args:
        name: any name that `timm.create_model` knows.
        image_size: side of the global views in pixels; other sizes pass too wherever the architecture allows them.
        kwargs: further arguments of the timm model (`embed_dim`, `depth`, `patch_size`, `in_chans`, ...).
        drop_path_rate: stochastic depth at the end of the full network, base and auxiliary head together.
        following_blocks: blocks of the auxiliary head, which share the linear rise of the drop path with the base.
        mask_token: whether patches can be masked (vision transformers only).
    Raises:
        ValueError: if timm has no such model, the size does not suit it, or it cannot be masked.
    """

    def __init__(
        self,
        name: str,
        image_size: int,
        kwargs: dict | None = None,
        drop_path_rate: float = 0.0,
        following_blocks: int = 0,
        mask_token: bool = False,
    ):
        super().__init__()
        self.model = create_timm_model(name, image_size, kwargs or {}, drop_path_rate)
        self.width, self.num_channels = self.model.num_features, (kwargs or {}).get("in_chans", 3)
        self.is_transformer = is_plain_vit(self.model)
        self.stride = self.model.feature_info[-1]["reduction"]
        self.grid = (max(1, image_size // self.stride),) * 2
        self.norm = nn.Identity()
        if isinstance(getattr(self.model, "norm", None), nn.Module):
            self.norm, self.model.norm = self.model.norm, nn.Identity()
        self.rates = share_drop_path(self.model, drop_path_rate, following_blocks)
        use_checkpointed_blocks(self.model)
        if mask_token and not self.is_transformer:
            raise ValueError(
                f"masking patches needs a vision transformer with a class token, got {name!r}; choose the objective 'dino' or "
                "'moco_v3' for this backbone"
            )
        self.mask_token = nn.Parameter(torch.zeros(1, self.width)) if mask_token else None

    def forward(self, pixels: Tensor, bool_masked_pos: Tensor | None = None) -> tuple[Tokens, Tensor]:
        """
        Args:
            pixels: (B, 3, H, W) normalized images.
            bool_masked_pos: (B, h, w) bool, True = replaced by the mask token.
        Returns:
            normalized tokens with cls (B, C) and patches (B, h, w, C), and the patches before the final norm.
        Raises:
            ValueError: if patches are masked without a mask token, or the image size is no multiple of the patch size.
        """
        if self.is_transformer:
            patches = self.embed(self.patchify(pixels))
            if bool_masked_pos is not None:
                if self.mask_token is None:
                    raise ValueError(
                        "expected no bool_masked_pos, since this backbone has no mask token (patch_supervision is [])"
                    )
                patches = torch.where(bool_masked_pos[..., None], self.mask_token.to(patches.dtype), patches)
            grid = patches.shape[1:3]
            hidden = self.run_blocks((patches + self.positions(grid)).flatten(1, 2))
            tokens = self.norm(hidden)
            return Tokens(tokens[:, 0], tokens[:, 1:].unflatten(1, grid)), hidden[:, 1:].unflatten(1, grid)
        features = self.model.forward_features(pixels)
        normed = self.norm(features)
        cls = self.model.forward_head(normed, pre_logits=True)
        return Tokens(cls, self.to_map(normed, pixels)), self.to_map(features, pixels)

    def encode_visible(self, pixels: Tensor, visible_indices: Tensor) -> tuple[Tokens, Tensor]:
        """Encode the visible patches only; nothing is computed for the others.

        Args:
            pixels: (B, 3, H, W) normalized images.
            visible_indices: (B, K) row-major positions of the patches to encode.
        Returns:
            normalized tokens with cls (B, C) and patches (B, K, C), in the order of `visible_indices`, and the patches before
            the final norm.
        """
        pieces = self.patchify(pixels)
        patches = self.embed(take(pieces.flatten(1, 2), visible_indices))
        hidden = self.run_blocks(patches + self.positions(pieces.shape[1:3]).flatten(0, 1)[visible_indices])
        tokens = self.norm(hidden)
        return Tokens(tokens[:, 0], tokens[:, 1:]), hidden[:, 1:]

    def patchify(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, h, w, C * p * q) pixels of every patch."""
        self.check_size(*pixels.shape[-2:])
        height, width = self.model.patch_embed.patch_size
        pieces = pixels.unflatten(3, (-1, width)).unflatten(2, (-1, height))
        return pieces.permute(0, 2, 4, 1, 3, 5).flatten(3)

    def embed(self, pieces: Tensor) -> Tensor:
        """(..., C * p * q) pixels of patches -> (..., width) without positions: the patch convolution as one linear layer."""
        projection = self.model.patch_embed.proj
        return F.linear(pieces, projection.weight.flatten(1), projection.bias)

    def check_size(self, height: int, width: int) -> None:
        """Raise a ValueError if patches do not divide an image of this size in pixels."""
        patch = self.model.patch_embed.patch_size if self.is_transformer else (1, 1)
        if height % patch[0] or width % patch[1]:
            raise ValueError(f"images of {(height, width)} pixels do not divide into patches of {tuple(patch)}")

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """(h, w, C) positions of the patches of a grid."""
        own = self.model.patch_embed.grid_size
        return interpolate_position_embedding(self.model.pos_embed[0, 1:].unflatten(0, own), tuple(grid))

    def use_sincos_position_embedding(self) -> None:
        """Fixed sine-cosine position embeddings for the patches, zeros for the class token (vision transformers)."""
        with torch.no_grad():
            self.model.pos_embed.zero_()
            self.model.pos_embed[0, 1:] = sincos_position_embedding(self.grid, self.width).flatten(0, 1)

    def run_blocks(self, patches: Tensor) -> Tensor:
        """Put the class token in front of (B, N, C) patches and run the blocks, without the final norm -> (B, 1 + N, C)."""
        return run_blocks(self.model.blocks, self._with_class_token(patches), self.model.grad_checkpointing)

    def hidden_states(self, pixels: Tensor) -> Iterator[Tensor]:
        """(B, 1 + N, C) class token and patches of (B, 3, H, W) images: embedded, then behind every block, without the norm."""
        patches = self.embed(self.patchify(pixels))
        hidden = self._with_class_token((patches + self.positions(patches.shape[1:3])).flatten(1, 2))
        run = partial(run_blocks, checkpointing=self.model.grad_checkpointing)
        return accumulate(self.model.blocks, lambda hidden, block: run([block], hidden), initial=hidden)

    def _with_class_token(self, patches: Tensor) -> Tensor:
        cls = (self.model.cls_token + self.model.pos_embed[:, :1]).expand(len(patches), -1, -1)
        return torch.cat([cls.to(patches.dtype), patches], dim=1)

    def timm_state_dict(self) -> dict[str, Tensor]:
        """The weights under timm's own names, without the mask token."""
        return {**self.model.state_dict(), **self.norm.state_dict(prefix="norm.")}

    def to_map(self, features: Tensor, pixels: Tensor) -> Tensor:
        """Features in the layout of their architecture -> (B, h, w, C)."""
        if features.ndim == 3:
            grid = (pixels.shape[-2] // self.stride, pixels.shape[-1] // self.stride)
            return features[:, getattr(self.model, "num_prefix_tokens", 0) :].unflatten(1, grid)
        return features if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else features.permute(0, 2, 3, 1)


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    """(B, N, C) tokens at (B, K) positions -> (B, K, C)."""
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))


def run_blocks(blocks: Iterable[nn.Module], hidden: Tensor, checkpointing: bool) -> Tensor:
    """Apply blocks in turn; with checkpointing their activations are recomputed in the backward pass."""
    for block in blocks:
        recompute = checkpointing and torch.is_grad_enabled()
        hidden = checkpoint(block, hidden, use_reentrant=False) if recompute else block(hidden)
    return hidden


def is_plain_vit(model: nn.Module) -> bool:
    """A vision transformer with a class token, learned positions for it and all patches, and nothing in front of the blocks."""
    return (
        isinstance(model, VisionTransformer)
        and model.num_prefix_tokens == 1
        and model.pos_embed is not None
        and not model.no_embed_class
        and isinstance(model.norm_pre, nn.Identity)
    )


def create_timm_model(name: str, image_size: int, kwargs: dict, drop_path_rate: float) -> nn.Module:
    """`timm.create_model` without classifier, at our image size, with errors that help."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f"timm has no model {name!r}." + (f" Did you mean {', '.join(near)}?" if near else ""))
    patch = kwargs.get("patch_size", 1)
    if type(patch) is int and patch > 0 and image_size % patch:
        raise ValueError(f"crops of {image_size} pixels do not divide into patches of {patch} pixels")
    arguments = {"num_classes": 0, "drop_path_rate": drop_path_rate, **timm_arguments(name, image_size, kwargs)}
    try:
        model = timm.create_model(name, **arguments)
    except Exception as error:  # of any kind: timm does not check these arguments
        raise ValueError(f"timm cannot make {name!r} with backbone_kwargs={kwargs}: {error}") from error
    if not len(getattr(model, "blocks", [model])):
        raise ValueError(f"expected at least one block, got {name!r} without any, by backbone_kwargs={kwargs}")
    return model


def timm_arguments(name: str, image_size: int, kwargs: dict) -> dict:
    """The arguments with which timm makes this model for our image size, and for smaller views beside it."""
    sizes = {"img_size": image_size} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    return {**kwargs, **sizes, **({"strict_img_size": False} if "swin" in name else {})}


def feature_width(name: str, image_size: int, kwargs: dict) -> int:
    """Channels C of a timm model's features, without memory for its weights; computed once.

    Raises:
        ValueError: if timm has no such model.
    """
    return _shape(name, image_size, json.dumps(kwargs, sort_keys=True))[0]


def vit_shape(name: str, image_size: int, kwargs: dict) -> tuple[int, int, tuple[int, int]] | None:
    """Width, depth, and height and width of a patch of a vision transformer; None for another architecture.

    Raises:
        ValueError: if timm has no such model.
    """
    width, depth, patch = _shape(name, image_size, json.dumps(kwargs, sort_keys=True))
    return None if patch is None else (width, depth, patch)


@cache
def _shape(name: str, image_size: int, kwargs: str) -> tuple[int, int, tuple[int, int] | None]:
    arguments = {key: value for key, value in json.loads(kwargs).items() if key not in ("pretrained", "checkpoint_path")}
    with torch.device("meta"), torch.random.fork_rng():
        model = create_timm_model(name, image_size, arguments, 0.0)
    is_vit = is_plain_vit(model)
    return model.num_features, len(model.blocks) if is_vit else 0, tuple(model.patch_embed.patch_size) if is_vit else None


def share_drop_path(model: nn.Module, last: float, following_blocks: int) -> list[float]:
    """Let the drop path rise linearly from 0 over the model's blocks and the blocks that follow behind it.

    Returns:
        the rates left for the following blocks.
    Source: released HSSL code: one linspace over depth + auxiliary depth values.
    """
    drop_paths = [[child for child in module.children() if isinstance(child, DropPath)] for module in model.modules()]
    blocks = [children for children in drop_paths if children]
    rates = {child.drop_prob for children in blocks for child in children}
    depth = len(blocks) + (1 if len(rates) > 1 or len(blocks) == 1 else 0)  # a first block with rate 0 has no DropPath
    shared = torch.linspace(0, last, depth + following_blocks, device="cpu").tolist()
    for children, rate in zip(blocks, shared[depth - len(blocks) :], strict=False):
        for child in children:
            child.drop_prob = rate
    return shared[depth:]


def has_norm(base: Backbone) -> bool:
    """Whether the base ends as its architecture does; only vision transformers are also trained without the final norm."""
    return not (base.is_transformer and isinstance(base.norm, nn.Identity))


def repeated_blocks(network: nn.Module) -> list[str]:
    """Classes of the blocks that a network stacks: the units in which an engine shards it or devices share it."""
    stacks = [module for module in network.modules() if isinstance(module, (nn.Sequential, nn.ModuleList)) and len(module) > 1]
    uniform = [stack for stack in stacks if len({type(block) for block in stack}) == 1]
    return sorted({type(stack[0]).__name__ for stack in uniform if any(stack[0].children())})
