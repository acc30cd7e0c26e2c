"""ViT, ConvNeXt, ResNet and Swin backbones as classes of transformers itself, so that loading them needs no timm.

One table per architecture pairs timm's parameter names with those of transformers; `map_names` applies it in either direction.
A further architecture is one table, one config builder and one row of `ARCHITECTURES`.

All other architectures, and every variant that transformers does not compute identically, are exported as timm models in a
`TimmWrapperModel`. PoolFormer is among them: that of transformers has neither a pooled output nor the norm after the pooling.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import ConvNextModel, PreTrainedModel, ResNetModel, SwinModel, ViTModel

from hssl_hf.errors import UserError
from hssl_hf.modules.backbone import Backbone, has_norm

# A row pairs two modules or two parameters: {s} and {i} are numbers, and what follows in a name (`.weight`) stays the same.
# The fused `attn.qkv` of timm is split into `attn.q`, `attn.k` and `attn.v` before.
BLOCK = {  # of ViT and Swin; Swin also has relative positions
    "norm1": "layernorm_before",
    "attn.q": "attention.q_proj",
    "attn.k": "attention.k_proj",
    "attn.v": "attention.v_proj",
    "attn.proj": "attention.o_proj",
    "norm2": "layernorm_after",
    "mlp": "mlp",
}
VIT = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    **{f"blocks.{{i}}.{timm}": f"layers.{{i}}.{theirs}" for timm, theirs in BLOCK.items()},
    "norm": "layernorm",
}
CONVNEXT = {
    "stem.0": "embeddings.patch_embeddings",
    "stem.1": "embeddings.layernorm",
    "stages.{s}.downsample": "encoder.stages.{s}.downsampling_layer",
    "stages.{s}.blocks.{i}.conv_dw": "encoder.stages.{s}.layers.{i}.dwconv",
    "stages.{s}.blocks.{i}.norm": "encoder.stages.{s}.layers.{i}.layernorm",
    "stages.{s}.blocks.{i}.mlp.fc1": "encoder.stages.{s}.layers.{i}.pwconv1",
    "stages.{s}.blocks.{i}.mlp.fc2": "encoder.stages.{s}.layers.{i}.pwconv2",
    "stages.{s}.blocks.{i}.gamma": "encoder.stages.{s}.layers.{i}.layer_scale_parameter",
    "head.norm": "layernorm",
}
RESNET_LAYER = {
    **{f"conv{number}": f"layer.{number - 1}.convolution" for number in (1, 2, 3)},
    **{f"bn{number}": f"layer.{number - 1}.normalization" for number in (1, 2, 3)},
    "downsample.0": "shortcut.convolution",
    "downsample.1": "shortcut.normalization",
}
RESNET = {
    "conv1": "embedder.embedder.convolution",
    "bn1": "embedder.embedder.normalization",
    **{
        f"layer{stage + 1}.{{i}}.{timm}": f"encoder.stages.{stage}.layers.{{i}}.{theirs}"
        for stage in range(4)
        for timm, theirs in RESNET_LAYER.items()
    },
}
SWIN_BLOCK = BLOCK | {"attn.relative_position_bias_table": "attention.relative_position_bias.relative_position_bias_table"}
SWIN = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "patch_embed.norm": "embeddings.norm",
    **{f"layers.{stage + 1}.downsample": f"encoder.layers.{stage}.downsample" for stage in range(3)},
    **{
        f"layers.{{s}}.blocks.{{i}}.{timm}": f"encoder.layers.{{s}}.blocks.{{i}}.{theirs}"
        for timm, theirs in SWIN_BLOCK.items()
    },
    "norm": "layernorm",
}
ONLY_IN_TRANSFORMERS = ("pooler", "embeddings.mask_token")


@torch.no_grad()
def to_transformers(base: Backbone, image_size: int) -> PreTrainedModel | None:
    """The base as a model of transformers in eval mode, or None if transformers has none with identical outputs.

    The pooler of a `ViTModel` is the identity, so that `pooler_output` is the normalized class token. A ViT without a final
    norm gets one with scale 1 and shift 0, and `features: hidden_states` in its configuration.
    """
    native = convert(base, image_size, ARCHITECTURES)
    return native if native is not None and _computes_the_same(native, base, image_size) else None


@torch.no_grad()
def convert(base: Backbone, image_size: int, architectures: "dict[str, Architecture]") -> PreTrainedModel | None:
    """The base as the class that a table has for it, in eval mode and not compared yet; None if there is none for its weights.

    Args:
        base: the network to convert.
        image_size: side in pixels.
        architectures: by timm's class.
    """
    try:
        architecture = architectures[type(base.model).__name__]
        weights = _split_qkv(base.timm_state_dict())
        names = map_names(weights, architecture.names)
        config = architecture.model_class.config_class(**architecture.config(base, image_size))
        native = architecture.model_class(config).eval()
        shapes = {name: value.shape for name, value in native.state_dict().items()}
        state = {names[name]: value.reshape(shapes[names[name]]) for name, value in weights.items()}
        native.load_state_dict({**architecture.constants(base), **state})
    except (AttributeError, KeyError, RuntimeError, ValueError):  # transformers has no such class or not this variant of it
        return None
    return native


def from_transformers(native: PreTrainedModel, base: Backbone) -> dict[str, Tensor]:
    """Weights of a model of transformers under timm's names, without a ViT's pooler, for a base of the same architecture.

    Raises:
        UserError: if the architectures differ, or a weight has no counterpart in timm.
    """
    timm_class = type(base.model).__name__
    architecture = ARCHITECTURES.get(timm_class)
    if architecture is None or not isinstance(native, architecture.model_class):
        expected = "a timm model" if architecture is None else f"a {architecture.model_class.__name__} or a timm model"
        raise UserError(
            f"expected {expected} for the backbone {timm_class}, got a {type(native).__name__}; choose weights of the same "
            "architecture"
        )
    state = {name: value for name, value in native.state_dict().items() if not name.startswith(ONLY_IN_TRANSFORMERS)}
    names = map_names(state, {theirs: timm for timm, theirs in architecture.names.items()})
    weights = _fuse_qkv({names[name]: value for name, value in state.items()})
    shapes = {name: value.shape for name, value in base.timm_state_dict().items()}
    same_size = {name for name, value in weights.items() if name in shapes and value.numel() == shapes[name].numel()}
    return {name: value.reshape(shapes[name]) if name in same_size else value for name, value in weights.items()}


def map_names(names: Iterable[str], table: dict[str, str]) -> dict[str, str]:
    """Parameter names of one library -> those of the other.

    Args:
        names: of parameters and buffers, with separate q, k and v.
        table: pattern of a name -> pattern of its counterpart; the order of the rows does not matter.
    Raises:
        UserError: if a name matches no row or several, or two names have the same counterpart.
    """
    mapped: dict[str, str] = {}
    for name in names:
        matches = [match for row in table.items() if (match := _counterpart(name, *row)) is not None]
        if len(matches) != 1 or matches[0] in mapped.values():
            raise UserError(f"expected one counterpart for the weight {name!r} and for no other weight, got {matches}")
        mapped[name] = matches[0]
    return mapped


def _counterpart(name: str, pattern: str, target: str) -> str | None:
    """The name in the other library by one row; None if the row is for other names."""
    for placeholder, number in zip(pattern.split("."), name.split("."), strict=False):
        if placeholder.startswith("{") and number.isdecimal():
            pattern, target = pattern.replace(placeholder, number), target.replace(placeholder, number)
    return target + name[len(pattern) :] if f"{name}.".startswith(f"{pattern}.") else None


def _split_qkv(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    split = {}
    for name, value in weights.items():
        chunks = zip("qkv", value.chunk(3), strict=True) if ".attn.qkv." in name else [("", value)]
        split |= {name.replace(".attn.qkv.", f".attn.{letter}."): chunk for letter, chunk in chunks}
    return split


def _fuse_qkv(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    fused = {}
    for name, value in weights.items():
        if ".attn.q." in name:
            chunks = [weights[name.replace(".attn.q.", f".attn.{letter}.")] for letter in "qkv"]
            fused[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(chunks)
        elif ".attn.k." not in name and ".attn.v." not in name:
            fused[name] = value
    return fused


def _computes_the_same(native: PreTrainedModel, base: Backbone, image_size: int) -> bool:
    """Whether both have the same features (B, C) for two random images, up to 1e-4 of the largest."""
    pixels = torch.randn(2, base.num_channels, image_size, image_size, generator=torch.Generator().manual_seed(0))
    training, device = base.training, next(base.parameters()).device
    expected = base.eval()(pixels.to(device))[0].cls.float().cpu()
    base.train(training)
    output = native(pixels, output_hidden_states=True)
    without_norm = getattr(native.config, "features", None) == "hidden_states"
    actual = output.hidden_states[-1][:, 0] if without_norm else output.pooler_output.flatten(1)
    tolerance = 1e-4 * expected.abs().max().clamp_min(1.0)
    return actual.shape == expected.shape and bool((actual - expected).abs().max() <= tolerance)


def vit_config(base: Backbone, image_size: int) -> dict:
    blocks = base.model.blocks
    return dict(
        hidden_size=base.width,
        num_hidden_layers=len(blocks),
        num_attention_heads=blocks[0].attn.num_heads,
        intermediate_size=blocks[0].mlp.fc1.out_features,
        layer_norm_eps=blocks[0].norm1.eps,
        image_size=image_size,
        patch_size=base.model.patch_embed.patch_size[0],
        num_channels=base.num_channels,
        qkv_bias=blocks[0].attn.qkv.bias is not None,
        pooler_act="linear",
        **({} if has_norm(base) else {"features": "hidden_states"}),
    )


def _vit_constants(base: Backbone) -> dict[str, Tensor]:
    pooler = {"pooler.dense.weight": torch.eye(base.width), "pooler.dense.bias": torch.zeros(base.width)}
    return pooler | identity_norm("layernorm", base.width)


def identity_norm(name: str, width: int) -> dict[str, Tensor]:
    """Weights of a layer norm with scale 1 and shift 0, by their names."""
    return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}


def convnext_config(base: Backbone, image_size: int) -> dict:
    return dict(
        depths=[len(stage.blocks) for stage in base.model.stages],
        hidden_sizes=[info["num_chs"] for info in base.model.feature_info],
        num_channels=base.num_channels,
        patch_size=base.model.stem[0].kernel_size[0],
        layer_norm_eps=base.model.stages[0].blocks[0].norm.eps,
        image_size=image_size,
    )


def resnet_config(base: Backbone, _image_size: int) -> dict:
    stages = [getattr(base.model, f"layer{number}") for number in range(1, 5)]
    return dict(
        num_channels=base.num_channels,
        depths=[len(stage) for stage in stages],
        hidden_sizes=[info["num_chs"] for info in base.model.feature_info[-4:]],
        embedding_size=base.model.conv1.out_channels,
        layer_type="bottleneck" if type(stages[0][0]).__name__ == "Bottleneck" else "basic",
    )


def swin_config(base: Backbone, image_size: int) -> dict:
    stages = base.model.layers
    mlp = stages[0].blocks[0].mlp
    return dict(
        image_size=image_size,
        patch_size=base.model.patch_embed.patch_size[0],
        num_channels=base.num_channels,
        embed_dim=base.model.patch_embed.proj.out_channels,
        depths=[len(stage.blocks) for stage in stages],
        num_heads=[stage.blocks[0].attn.num_heads for stage in stages],
        window_size=max(stage.blocks[0].attn.window_size[0] for stage in stages),
        mlp_ratio=mlp.fc1.out_features / mlp.fc1.in_features,
        drop_path_rate=0.0,
    )


@dataclass(frozen=True)
class Architecture:
    """How a timm architecture becomes a model of transformers.

    Args:
        model_class: in transformers.
        config: (base, image size in pixels) -> arguments of the model's configuration.
        names: table of parameter names, timm -> transformers.
        constants: weights that transformers' model has and the base may lack.
    """

    model_class: type[PreTrainedModel]
    config: Callable[[Backbone, int], dict]
    names: dict[str, str]
    constants: Callable[[Backbone], dict[str, Tensor]] = lambda base: {}


ARCHITECTURES = {  # by timm's class
    "VisionTransformer": Architecture(ViTModel, vit_config, VIT, _vit_constants),
    "ConvNeXt": Architecture(ConvNextModel, convnext_config, CONVNEXT),
    "ResNet": Architecture(ResNetModel, resnet_config, RESNET),
    "SwinTransformer": Architecture(SwinModel, swin_config, SWIN),
}
