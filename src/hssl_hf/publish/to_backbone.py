"""ViT, ConvNeXt, ResNet and Swin as classes of transformers that return feature maps, for segmentation and detection.

transformers has no such class for `vit`. `Dinov2Backbone` computes the same: a ViT with a scale behind each residual branch,
which is 1 unless the base was trained with one.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ConvNextBackbone, Dinov2Backbone, PreTrainedModel, ResNetBackbone, SwinBackbone

from hssl_hf.modules.backbone import Backbone, has_norm
from hssl_hf.publish.to_transformers import (
    BLOCK,
    CONVNEXT,
    RESNET,
    SWIN,
    VIT,
    Architecture,
    convert,
    convnext_config,
    identity_norm,
    resnet_config,
    swin_config,
    vit_config,
)

DINOV2_BLOCK = {
    **BLOCK,
    "norm1": "norm1",
    "norm2": "norm2",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
DINOV2 = {
    **{timm: theirs for timm, theirs in VIT.items() if not timm.startswith("blocks.")},
    **{f"blocks.{{i}}.{timm}": f"encoder.layer.{{i}}.{theirs}" for timm, theirs in DINOV2_BLOCK.items()},
}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
LAST_NORM = f"hidden_states_norms.{STAGES[-1]}"  # of ConvNeXt and Swin, whose backbones normalize the map of every stage


def to_backbone(base: Backbone, image_size: int) -> PreTrainedModel | None:
    """The base as a backbone of transformers in eval mode, or None if transformers has none with identical feature maps.

    The default `out_features` are all four stages, and of a ViT the blocks at 1/3, 1/2, 2/3 and the end of its depth.
    Source: iBOT's UPerNet, which reads the blocks 4, 6, 8 and 12.
    """
    native = convert(base, image_size, BACKBONES)
    if native is None:
        return None
    pixels = torch.randn(2, base.num_channels, image_size, image_size, generator=torch.Generator().manual_seed(0))
    training = base.training
    expected = feature_maps(base.eval(), pixels)
    base.train(training)
    with torch.no_grad():
        actual = dict(zip(native.out_features, native(pixels).feature_maps, strict=True))
    same = [torch.allclose(value, expected[name].float().cpu(), atol=1e-4, rtol=1e-4) for name, value in actual.items()]
    return native if all(same) else None


@torch.no_grad()
def feature_maps(base: Backbone, pixels: Tensor) -> dict[str, Tensor]:
    """Feature maps (B, C, h, w) of all stages, or of all blocks of a ViT, by their names in transformers.

    Those of a ViT went through its final norm if it has one. ConvNeXt and Swin have a final norm for the last stage only; the
    maps of their other stages are normalized without trained parameters.

    Args:
        base: in eval mode; its architecture is in `BACKBONES`.
        pixels: (B, 3, H, W) normalized images.
    """
    stages, outputs = STAGES_AND_NORMS[type(base.model).__name__](base), []
    hooks = [stage.register_forward_hook(lambda _module, _inputs, output: outputs.append(output)) for stage, _ in stages]
    base(pixels.to(next(base.parameters()).device))
    for hook in hooks:
        hook.remove()
    maps = [norm(base.to_map(output, pixels)) for (_, norm), output in zip(stages, outputs, strict=True)]
    return {f"stage{number}": value.permute(0, 3, 1, 2) for number, value in enumerate(maps, start=1)}


def _dinov2_config(base: Backbone, image_size: int) -> dict:
    config, depth = vit_config(base, image_size), len(base.model.blocks)
    del config["pooler_act"]
    taps = sorted({max(1, depth // 3), max(1, depth // 2), max(1, 2 * depth // 3), depth})
    return config | dict(
        mlp_ratio=config.pop("intermediate_size") // base.width,
        layerscale_value=1.0,
        use_mask_token=False,
        apply_layernorm=has_norm(base),
        out_features=[f"stage{tap}" for tap in taps],
    )


def _dinov2_constants(base: Backbone) -> dict[str, Tensor]:
    names = [f"encoder.layer.{i}.layer_scale{branch}.lambda1" for i in range(len(base.model.blocks)) for branch in (1, 2)]
    return dict.fromkeys(names, torch.ones(base.width)) | identity_norm("layernorm", base.width)


def _stage_norms(base: Backbone) -> dict[str, Tensor]:
    widths = [info["num_chs"] for info in base.model.feature_info]
    norms = [identity_norm(f"hidden_states_norms.{stage}", width) for stage, width in zip(STAGES, widths, strict=True)]
    return {name: value for norm in norms for name, value in norm.items()}


def _swin_constants(base: Backbone) -> dict[str, Tensor]:
    """`SwinBackbone` also has the norm of `SwinModel`, without using it."""
    return _stage_norms(base) | base.norm.state_dict(prefix="swin.layernorm.")


def _with_stages(config: Callable[[Backbone, int], dict]) -> Callable[[Backbone, int], dict]:
    return lambda base, image_size: config(base, image_size) | {"out_features": list(STAGES)}


BACKBONES = {  # by timm's class
    "VisionTransformer": Architecture(Dinov2Backbone, _dinov2_config, DINOV2, _dinov2_constants),
    "ConvNeXt": Architecture(
        ConvNextBackbone, _with_stages(convnext_config), CONVNEXT | {"head.norm": LAST_NORM}, _stage_norms
    ),
    "ResNet": Architecture(ResNetBackbone, _with_stages(resnet_config), RESNET),
    "SwinTransformer": Architecture(
        SwinBackbone,
        _with_stages(swin_config),
        {timm: f"swin.{theirs}" for timm, theirs in SWIN.items()} | {"norm": LAST_NORM},
        _swin_constants,
    ),
}


def _normalize(features: Tensor, norm: nn.LayerNorm | None = None, eps: float = 1e-5) -> Tensor:
    """Layer norm over the channels of (B, h, w, C) with the parameters of `norm`, or without any."""
    if norm is None:
        return F.layer_norm(features, features.shape[-1:], eps=eps)
    return F.layer_norm(features, features.shape[-1:], norm.weight, norm.bias, norm.eps)


def _convnext_stages(base: Backbone) -> list[tuple[nn.Module, Callable]]:
    plain, last = partial(_normalize, eps=1e-6), partial(_normalize, norm=base.model.head.norm)
    return list(zip(base.model.stages, [plain, plain, plain, last], strict=True))


STAGES_AND_NORMS = {  # by timm's class: modules that return the map of a stage, and its norm for (B, h, w, C)
    "VisionTransformer": lambda base: [(block, base.norm) for block in base.model.blocks],
    "ConvNeXt": _convnext_stages,
    "ResNet": lambda base: [(getattr(base.model, f"layer{number}"), nn.Identity()) for number in range(1, 5)],
    "SwinTransformer": lambda base: list(zip(base.model.layers, [_normalize] * 3 + [base.norm], strict=True)),
}
