"""ConvNeXt, ResNet and Swin as transformers' own models, so that nobody needs timm to load them.

Everything else, and every variant of these that transformers does not compute alike, stays a timm model that transformers
wraps. PoolFormer is among them: transformers' own has neither a pooled output nor the norm behind the pooling.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
)

from hssl_hf.errors import UserError
from hssl_hf.modules.backbone import Backbone, has_norm

CONVNEXT = [
    (r"^stem\.0\.", "embeddings.patch_embeddings."),
    (r"^stem\.1\.", "embeddings.layernorm."),
    (r"^stages\.(\d+)\.downsample\.", r"encoder.stages.\1.downsampling_layer."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.", r"encoder.stages.\1.layers.\2."),
    (r"\.gamma$", ".layer_scale_parameter"),
    (r"\.conv_dw\.", ".dwconv."),
    (r"(layers\.\d+)\.norm\.", r"\1.layernorm."),
    (r"\.mlp\.fc(\d)\.", r".pwconv\1."),
    (r"^head\.norm\.", "layernorm."),
]
RESNET = [
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    (r"^layer1\.(\d+)\.", r"encoder.stages.0.layers.\1."),
    (r"^layer2\.(\d+)\.", r"encoder.stages.1.layers.\1."),
    (r"^layer3\.(\d+)\.", r"encoder.stages.2.layers.\1."),
    (r"^layer4\.(\d+)\.", r"encoder.stages.3.layers.\1."),
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
    (r"(layers\.\d+)\.conv1\.", r"\1.layer.0.convolution."),
    (r"(layers\.\d+)\.conv2\.", r"\1.layer.1.convolution."),
    (r"(layers\.\d+)\.conv3\.", r"\1.layer.2.convolution."),
    (r"(layers\.\d+)\.bn1\.", r"\1.layer.0.normalization."),
    (r"(layers\.\d+)\.bn2\.", r"\1.layer.1.normalization."),
    (r"(layers\.\d+)\.bn3\.", r"\1.layer.2.normalization."),
]
SWIN = [
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^patch_embed\.norm\.", "embeddings.norm."),
    (r"^layers\.1\.downsample\.", "encoder.layers.0.downsample."),
    (r"^layers\.2\.downsample\.", "encoder.layers.1.downsample."),
    (r"^layers\.3\.downsample\.", "encoder.layers.2.downsample."),
    (r"^layers\.", "encoder.layers."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.relative_position_bias_table", ".attention.relative_position_bias.relative_position_bias_table"),
    (r"\.attn\.", ".attention."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"^norm\.", "layernorm."),
]


@torch.no_grad()
def to_transformers(base: Backbone, image_size: int) -> PreTrainedModel | None:
    """The base as transformers' own model, or None where it has none that computes the same."""
    family = FAMILIES.get(type(base.model).__name__)
    if family is None:
        return None
    build, rules = family
    try:
        native = build(base, image_size).eval()
        state = {}
        for name, value in base.timm_state_dict().items():
            state |= _renamed(name, value.detach().float(), rules)
        expected = native.state_dict()
        native.load_state_dict({name: value.reshape(expected[name].shape) for name, value in state.items()})
    except (AttributeError, KeyError, RuntimeError, ValueError):  # a variant that has no place there
        return None
    pixels = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    training, device = base.training, next(base.parameters()).device
    expected = base.eval()(pixels.to(device))[0].cls.float().cpu()
    base.train(training)
    found = native(pixels).pooler_output.flatten(1)
    same = found.shape == expected.shape and (found - expected).abs().max() <= 1e-4 * expected.abs().max().clamp_min(1.0)
    return native if same else None


def from_transformers(native: PreTrainedModel, base: Backbone) -> dict[str, Tensor]:
    """Weights of transformers' own model under timm's names, for a base of the same architecture.

    Raises:
        UserError: if the architectures differ.
    """
    state, found = native.state_dict(), {}
    family = FAMILIES.get(type(base.model).__name__)
    if family is None:
        raise UserError(f"a {type(native).__name__} cannot become a {type(base.model).__name__}")
    for name, value in base.timm_state_dict().items():
        parts = [state[part] for part in _renamed(name, value, family[1]) if part in state]
        if parts:
            joined = torch.cat(parts) if len(parts) > 1 else parts[0]
            found[name] = joined.reshape(value.shape) if joined.numel() == value.numel() else joined
    return found


def _renamed(name: str, value: Tensor, rules: list[tuple[str, str]]) -> dict[str, Tensor]:
    if ".attn.qkv." in name:
        parts = zip("qkv", value.chunk(3), strict=True)
        return {k: v for p, rows in parts for k, v in _renamed(name.replace("qkv", f"{p}_proj"), rows, rules).items()}
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return {name: value.contiguous().clone()}


def _convnext(base: Backbone, image_size: int) -> ConvNextModel:
    stages = base.model.stages
    return ConvNextModel(
        ConvNextConfig(
            depths=[len(stage.blocks) for stage in stages],
            hidden_sizes=[info["num_chs"] for info in base.model.feature_info],
            patch_size=base.model.stem[0].kernel_size[0],
            layer_norm_eps=stages[0].blocks[0].norm.eps,
            image_size=image_size,
        )
    )


def _resnet(base: Backbone, image_size: int) -> ResNetModel:
    stages = [getattr(base.model, f"layer{number}") for number in range(1, 5)]
    bottleneck = type(stages[0][0]).__name__ == "Bottleneck"
    return ResNetModel(
        ResNetConfig(
            depths=[len(stage) for stage in stages],
            hidden_sizes=[info["num_chs"] for info in base.model.feature_info[-4:]],
            embedding_size=base.model.conv1.out_channels,
            layer_type="bottleneck" if bottleneck else "basic",
        )
    )


def _swin(base: Backbone, image_size: int) -> SwinModel:
    stages = base.model.layers
    return SwinModel(
        SwinConfig(
            image_size=image_size,
            patch_size=base.model.patch_embed.patch_size[0],
            embed_dim=base.model.patch_embed.proj.out_channels,
            depths=[len(stage.blocks) for stage in stages],
            num_heads=[stage.blocks[0].attn.num_heads for stage in stages],
            window_size=max(stage.blocks[0].attn.window_size[0] for stage in stages),
            mlp_ratio=stages[0].blocks[0].mlp.fc1.out_features / stages[0].blocks[0].mlp.fc1.in_features,
            drop_path_rate=0.0,
        )
    )


FAMILIES: dict[str, tuple[Callable, list[tuple[str, str]]]] = {
    "ConvNeXt": (_convnext, CONVNEXT),
    "ResNet": (_resnet, RESNET),
    "SwinTransformer": (_swin, SWIN),
}


VIT_NAMES = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "norm": "layernorm",
}


def is_stock_vit(base: Backbone) -> bool:
    """Whether transformers' `ViTModel` has a place for every weight of the base."""
    block = {"norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
    known = {"cls_token", "pos_embed", "patch_embed.proj", "norm"}
    names = {name.removesuffix(".weight").removesuffix(".bias") for name in base.timm_state_dict()}
    return base.is_transformer and all(
        name in known or (name.startswith("blocks.") and name.split(".", 2)[2] in block) for name in names
    )


def to_vit(base: Backbone, image_size: int) -> ViTModel:
    """The base as a `ViTModel` whose pooler is the identity, so that `pooler_output` is the normalized class token.

    A base without a final norm gets one with scale 1 and shift 0, and a configuration that says `features: hidden_states`.
    """
    timm_model = base.model
    attention = timm_model.blocks[0].attn
    config = ViTConfig(
        hidden_size=base.width,
        num_hidden_layers=len(timm_model.blocks),
        num_attention_heads=attention.num_heads,
        intermediate_size=timm_model.blocks[0].mlp.fc1.out_features,
        layer_norm_eps=timm_model.blocks[0].norm1.eps,
        image_size=image_size,
        patch_size=timm_model.patch_embed.patch_size[0],
        qkv_bias=attention.qkv.bias is not None,
        pooler_act="linear",
        **({} if has_norm(base) else {"features": "hidden_states"}),
    )
    vit = ViTModel(config)
    state: dict[str, Tensor] = {
        "pooler.dense.weight": torch.eye(base.width),
        "pooler.dense.bias": torch.zeros(base.width),
        "layernorm.weight": torch.ones(base.width),
        "layernorm.bias": torch.zeros(base.width),
    }
    for name, value in base.timm_state_dict().items():
        if ".attn.qkv." in name:
            layer, kind = name.split(".")[1], name.rsplit(".", 1)[1]
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                state[f"layers.{layer}.attention.{part}_proj.{kind}"] = rows
        else:
            state[_vit_name(name)] = value
    vit.load_state_dict({key: value.detach().float().contiguous().clone() for key, value in state.items()})
    return vit.eval()


def from_vit(vit: ViTModel) -> dict[str, Tensor]:
    """The inverse of `to_vit`: weights under timm's names, with the final norm and without the pooler."""
    names, state, found = {ours: timms for timms, ours in VIT_NAMES.items()}, vit.state_dict(), {}
    for name, value in state.items():
        layer = re.match(r"layers\.(\d+)\.", name)
        prefix, inner = (f"blocks.{layer.group(1)}.", name[layer.end() :]) if layer else ("", name)
        if inner.startswith("attention.q_proj."):
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            found[f"{prefix}attn.qkv.{inner.rsplit('.', 1)[1]}"] = torch.cat(parts)
        elif inner in names:
            found[prefix + names[inner]] = value
        elif inner.rpartition(".")[0] in names:
            found[f"{prefix}{names[inner.rpartition('.')[0]]}.{inner.rpartition('.')[2]}"] = value
    return found


def _vit_name(name: str) -> str:
    prefix = ""
    if name.startswith("blocks."):
        _, layer, name = name.split(".", 2)
        prefix = f"layers.{layer}."
    stem, dot, kind = name.rpartition(".")
    return prefix + (f"{VIT_NAMES[stem]}.{kind}" if kind in ("weight", "bias") and dot else VIT_NAMES[name])
