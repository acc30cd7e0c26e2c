"""Encoders of transformers' own models, by `model_type`."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from hssl_hf.errors import UserError
from hssl_hf.evaluation.encoder_contract import Encoder, Loaded, pair


@dataclass(frozen=True)
class VisionTransformerFamily:
    """How models of one type that turn an image into one sequence of tokens are read.

    Args:
        norm: module behind the last block.
        prefix: number of tokens in front of the patches, the class token first.
        sizes: how other image sizes pass: by the argument `interpolate_pos_encoding`, by themselves, or, with rotary positions,
            without interpolation.
        pool: module that makes one vector of all tokens, or None for the class token, or the mean where there is none.
        pools_patches: whether that vector is one of the patches.
        arguments: (number of images, number of patches) -> arguments that switch off masking.
        model_arguments: of the model's class beside the configuration.
    """

    norm: str = "layernorm"
    prefix: Callable[[PreTrainedConfig], int] = lambda config: 1
    sizes: Literal["argument", "always", "rotary"] = "argument"
    pool: str | None = None
    pools_patches: Callable[[PreTrainedConfig], bool] = lambda config: False
    arguments: Callable[[int, int], dict] = lambda images, patches: {}
    model_arguments: dict[str, bool] = field(default_factory=dict)


def _no_tokens(config: PreTrainedConfig) -> int:
    return 0


def _class_token_and_registers(config: PreTrainedConfig) -> int:
    return 1 + config.num_register_tokens


def _identity_order(images: int, patches: int) -> dict[str, Tensor]:
    """ViTMAE keeps the patches in the order of their noise."""
    return {"noise": torch.arange(patches, dtype=torch.float32).expand(images, -1)}


_BEIT = VisionTransformerFamily(sizes="always", pool="pooler", pools_patches=lambda config: config.use_mean_pooling)
VISION_TRANSFORMERS = {
    "vit": VisionTransformerFamily(),
    "deit": VisionTransformerFamily(prefix=lambda config: 2),  # class and distillation token
    "vit_mae": VisionTransformerFamily(arguments=_identity_order),
    "vit_msn": VisionTransformerFamily(),
    "ijepa": VisionTransformerFamily(prefix=_no_tokens),
    "dinov2": VisionTransformerFamily(sizes="always"),
    "dinov2_with_registers": VisionTransformerFamily(sizes="always", prefix=_class_token_and_registers),
    "dinov3_vit": VisionTransformerFamily("norm", _class_token_and_registers, "rotary"),
    "beit": _BEIT,
    "data2vec-vision": replace(_BEIT, model_arguments={"add_pooling_layer": True}),
    "clip_vision_model": VisionTransformerFamily("post_layernorm"),
    "siglip_vision_model": VisionTransformerFamily("post_layernorm", _no_tokens, pool="head"),
}
IMAGE_TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}  # of models of images and texts


class VisionTransformerEncoder(Encoder):
    """An encoder with one sequence of tokens.

    Args:
        loaded: a model of transformers.
        family: how it is read.
        blocks, norm: its blocks, and the final norm.
        patch_size, image_size, width: in pixels, and channels.
        use_norm: `norm` of `Encoder`.
    """

    def __init__(
        self,
        loaded: Loaded,
        family: VisionTransformerFamily,
        blocks: nn.ModuleList | nn.Sequential,
        norm: nn.Module,
        patch_size: int,
        image_size: tuple[int, int],
        width: int,
        use_norm: bool,
    ):
        super().__init__(loaded, [width] * len(blocks), [patch_size] * len(blocks), image_size, use_norm)
        self.family, self.prefix, self._modules_of = family, family.prefix(self.network.config), (blocks, norm)
        self._pools_patches = self.prefix == 0 or family.pools_patches(self.network.config)

    def _encode(self, pixels: Tensor, blocks: list[int], norm: bool) -> dict[int, tuple[Tensor, Tensor]]:
        size, family = tuple(pixels.shape[-2:]), self.family
        grid = size[0] // self.stride, size[1] // self.stride
        resized = size != self.image_size
        if self.image_size[0] != self.image_size[1] and family.sizes != "rotary" and (resized or family.sizes == "always"):
            raise self.size_error(size, "transformers interpolates the positions of square images only")
        arguments = family.arguments(len(pixels), grid[0] * grid[1])
        if resized and family.sizes == "argument":
            arguments["interpolate_pos_encoding"] = True
        modules, final_norm = self._modules_of
        with _outputs_of({number: modules[number] for number in blocks}) as outputs:
            self.network(pixels, **arguments)
        return {number: self._read(final_norm(x) if norm else x, grid, norm) for number, x in outputs.items()}

    def _read(self, tokens: Tensor, grid: tuple[int, int], normalized: bool) -> tuple[Tensor, Tensor]:
        patches = tokens[:, self.prefix :]
        if normalized and (pool := getattr(self.network, self.family.pool or "", None)):  # SigLIP may have none
            cls = pool(tokens)
        else:
            cls = patches.mean(1) if self._pools_patches else tokens[:, 0]
        return cls, patches.unflatten(1, grid)


def _normalize_then_pool(norm: nn.Module, features: Tensor) -> tuple[Tensor, Tensor]:
    normalized = norm(features)
    return normalized.mean((1, 2)), normalized


def _pool_then_normalize(norm: nn.Module, features: Tensor) -> tuple[Tensor, Tensor]:
    return norm(features.mean((1, 2))), features


def _normalize_both(norm: nn.Module, features: Tensor) -> tuple[Tensor, Tensor]:
    return norm(features.mean((1, 2))), norm(features)


@dataclass(frozen=True)
class HierarchicalFamily:
    """How models of one type with stages of ever coarser maps are read.

    Args:
        finish: (norm, features (B, h, w, D) of the last stage) -> cls and patches, as the model computes them.
        norm: module of the last stage's norm, or None.
        widths: channels of the stages.
        first_stride: of the first stage; every further one doubles it.
    """

    finish: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
    norm: str | None
    widths: Callable[[PreTrainedConfig], list[int]] = lambda config: list(config.hidden_sizes)
    first_stride: Callable[[PreTrainedConfig], int] = lambda config: 4


_CONVNEXT = HierarchicalFamily(_pool_then_normalize, "layernorm", first_stride=lambda config: config.patch_size)
_SWIN = HierarchicalFamily(
    _normalize_then_pool,
    "layernorm",
    lambda config: [config.embed_dim * 2**stage for stage in range(len(config.depths))],
    lambda config: config.patch_size,
)
HIERARCHICAL = {
    "convnext": _CONVNEXT,
    "convnextv2": _CONVNEXT,
    "dinov3_convnext": HierarchicalFamily(_normalize_both, "layer_norm"),
    "resnet": HierarchicalFamily(
        _normalize_then_pool, None, first_stride=lambda config: 8 if config.downsample_in_first_stage else 4
    ),
    "swin": _SWIN,
    "swinv2": _SWIN,
}


class HierarchicalEncoder(Encoder):
    """An encoder whose blocks are the stages of a ConvNeXt, ResNet or Swin.

    The classes of Swin in transformers keep the smaller window of a small image for all later ones; here every image is
    computed as by a new model.
    """

    def __init__(self, loaded: Loaded, family: HierarchicalFamily):
        config = loaded.network.config
        widths = family.widths(config)
        first = family.first_stride(config)
        size = pair(getattr(config, "image_size", 224))  # ResNet's configuration has none
        super().__init__(loaded, widths, [first * 2**stage for stage in range(len(widths))], size)
        self._finish = partial(family.finish, self.network.get_submodule(family.norm) if family.norm else nn.Identity())
        stages = list(_list_of(self.network, len(config.depths), "stages", loaded.name))
        self._stages = [stage.blocks[-1] if hasattr(stage, "blocks") else stage for stage in stages]  # of Swin, in front of
        layers = [layer for stage in stages for layer in getattr(stage, "blocks", ())]  # the downsampling
        self._windows = [(layer, layer.window_size, layer.shift_size) for layer in layers]
        self._positions = {} if not getattr(config, "use_absolute_embeddings", False) else {"interpolate_pos_encoding": True}

    def _encode(self, pixels: Tensor, blocks: list[int], norm: bool) -> dict[int, tuple[Tensor, Tensor]]:
        size = tuple(pixels.shape[-2:])
        for layer, window_size, shift_size in self._windows:
            layer.window_size, layer.shift_size = window_size, shift_size
        with _outputs_of({number: self._stages[number] for number in blocks}) as outputs:
            self.network(pixels, **(self._positions if size != self.image_size else {}))
        maps = {number: self._to_map(features, number, size) for number, features in outputs.items()}
        last = self.num_blocks - 1
        return {n: self._finish(x) if norm and n == last else (x.mean((1, 2)), x) for n, x in maps.items()}

    def _to_map(self, features: Tensor, stage: int, size: tuple[int, int]) -> Tensor:
        if features.ndim == 4:
            return features.permute(0, 2, 3, 1)
        return features.unflatten(1, tuple(-(-side // self.strides[stage]) for side in size))  # Swin pads odd sides


class _outputs_of:
    """Collects what modules return while the network runs: a dictionary from number to features."""

    def __init__(self, modules: dict[int, nn.Module]):
        self.modules, self.outputs = modules, {}

    def __enter__(self) -> dict[int, Tensor]:
        self.hooks = [module.register_forward_hook(partial(self._keep, number)) for number, module in self.modules.items()]
        return self.outputs

    def __exit__(self, *_error) -> None:
        for hook in self.hooks:
            hook.remove()

    def _keep(self, number: int, _module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> None:
        self.outputs[number] = output[0] if isinstance(output, tuple) else output


def is_readable(model_type: str) -> bool:
    """Whether models of transformers of this type can be read."""
    return model_type in {*VISION_TRANSFORMERS, *HIERARCHICAL, *IMAGE_TOWERS}


def model_arguments(model_type: str) -> dict[str, bool]:
    """Arguments for the class of a model beside its configuration."""
    return VISION_TRANSFORMERS[model_type].model_arguments if model_type in VISION_TRANSFORMERS else {}


def transformers_encoder(name: str, model: PreTrainedModel) -> Encoder:
    """The encoder of a model of transformers whose type is readable.

    Of models of images and texts the image tower is taken. A configuration with `features: hidden_states` or
    `apply_layernorm: false` is that of a backbone trained without a final norm, whose outputs are those of the last block.

    Raises:
        UserError: if the model has not the parts that its configuration describes.
    """
    network = getattr(model, "vision_model", model)
    config = network.config
    model_type = IMAGE_TOWERS.get(config.model_type, config.model_type)
    loaded = Loaded(name, network, partial(type(network), config, **model_arguments(model_type)))
    if model_type in HIERARCHICAL:
        return HierarchicalEncoder(loaded, HIERARCHICAL[model_type])
    family = VISION_TRANSFORMERS[model_type]
    if model_type == "vit_mae":
        config.mask_ratio = 0.0
    patch = pair(config.patch_size)
    if patch[0] != patch[1]:
        raise UserError(f"{name!r} has patches of {patch[0]} x {patch[1]} pixels; name a model with square patches")
    return VisionTransformerEncoder(
        loaded,
        family,
        _list_of(network, config.num_hidden_layers, "blocks", name),
        network.get_submodule(family.norm),
        patch[0],
        pair(config.image_size),
        config.hidden_size,
        getattr(config, "features", None) != "hidden_states" and getattr(config, "apply_layernorm", True),
    )


def own_encoder(name: str, model: PreTrainedModel) -> Encoder:
    """The encoder of one of this package's vision transformers, such as the base in a `training` revision."""
    base, rebuild = model.base, partial(type(model), model.config)
    use_norm = not isinstance(base.norm, nn.Identity)
    patch, size = base.model.patch_embed.patch_size[0], pair(model.config.image_size)
    loaded = Loaded(name, model, rebuild)
    family = VisionTransformerFamily()
    return VisionTransformerEncoder(loaded, family, base.model.blocks, base.norm, patch, size, base.width, use_norm)


def _list_of(network: nn.Module, length: int, what: str, name: str) -> nn.ModuleList:
    """The outermost list of as many modules as the configuration describes blocks or stages."""
    lists = (module for module in network.modules() if isinstance(module, nn.ModuleList) and len(module) == length)
    if (blocks := next(lists, None)) is None:
        raise UserError(f"{name!r}: expected {length} {what} in a {type(network).__name__}, as its configuration describes")
    return blocks
