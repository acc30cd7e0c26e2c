"""Our backbone as what everybody has: a `ViTModel`, or a timm model that transformers wraps; and its image processor."""

import json
import re
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BitImageProcessor, ViTConfig, ViTModel

from hssl_hf.augmentation import IMAGENET_MEAN, IMAGENET_STD
from hssl_hf.backbone import Backbone, is_plain_vit

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


def image_processor(image_size: int, crop_share: float = 0.875, mean=IMAGENET_MEAN, std=IMAGENET_STD) -> BitImageProcessor:
    """Resize the short side, crop the centre, normalise.

    Args:
        image_size: side of the crop in pixels.
        crop_share: side of the crop as a share of the resized short side; 1 for images that are small already.
    """
    return BitImageProcessor(
        size={"shortest_edge": round(image_size / crop_share)},
        crop_size={"height": image_size, "width": image_size},
        image_mean=list(mean),
        image_std=list(std),
    )


def has_norm(base: Backbone) -> bool:
    """Whether the base ends with a norm."""
    return not isinstance(base.norm, nn.Identity)


def is_stock_vit(base: Backbone) -> bool:
    """Whether transformers' `ViTModel` has a place for every weight of the base."""
    block = {"norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
    known = {"cls_token", "pos_embed", "patch_embed.proj", "norm"}
    names = {name.removesuffix(".weight").removesuffix(".bias") for name in base.timm_state_dict()}
    return base.is_transformer and all(
        name in known or (name.startswith("blocks.") and name.split(".", 2)[2] in block) for name in names
    )


def to_vit(base: Backbone, image_size: int) -> ViTModel:
    """The base as a `ViTModel` whose pooler is the identity, so that `pooler_output` is the normalised class token.

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


def save_timm_wrapper(
    model: nn.Module, state: dict[str, Tensor], architecture: str, arguments: dict, processor: BitImageProcessor, folder: Path
) -> None:
    """Write weights under timm's names with a configuration that transformers and timm both read.

    Args:
        model: the timm model; with a classifier it becomes one for image classification.
        state: its weights.
        architecture, arguments: what `timm.create_model` makes it from.
    """
    pretrained, size = timm.get_pretrained_cfg(architecture), processor.crop_size["height"]
    description = {
        "model_type": "timm_wrapper",
        "architectures": ["TimmWrapperForImageClassification" if model.num_classes else "TimmWrapperModel"],
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "global_pool": getattr(model, "global_pool", "avg") if is_plain_vit(model) else "avg",
        "model_args": arguments,
        "pretrained_cfg": {
            "mean": processor.image_mean,
            "std": processor.image_std,
            "input_size": [3, size, size],
            "interpolation": "bicubic",
            "crop_pct": size / processor.size["shortest_edge"],
            "fixed_input_size": pretrained.fixed_input_size,
            "num_classes": model.num_classes,
            "first_conv": pretrained.first_conv,
            "classifier": pretrained.classifier,
        },
    }
    (folder / "config.json").write_text(json.dumps(description, indent=2))
    state = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


class _TwoOutputs(nn.Module):
    """A stock model as ONNX knows it: pixels -> last_hidden_state, pooler_output."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.arguments = {"interpolate_pos_encoding": True} if isinstance(model, ViTModel) else {}

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(pixel_values, **self.arguments)
        return output.last_hidden_state, output.pooler_output


def save_onnx(folder: Path, image_size: int) -> None:
    """Write the stock model of a folder as `onnx/model.onnx`, for any number of images, and any size where the model allows it.

    Raises:
        ValueError: if the packages for it are not installed.
    """
    try:
        import onnxruntime  # noqa: F401 (the check needs it)
        import onnxscript  # noqa: F401 (torch needs it)
    except ImportError as error:
        raise ValueError(f"ONNX needs more packages: pip install 'hssl-hf[onnx]' ({error})") from error
    kind = AutoConfig.from_pretrained(folder).model_type
    plain = {"attn_implementation": "eager"} if kind == "swin" else {}  # its fused attention cannot be written as ONNX
    model = _TwoOutputs(AutoModel.from_pretrained(folder, **plain)).eval()
    dynamic, size = {0: torch.export.Dim.DYNAMIC}, image_size
    if kind in ("vit", "convnext", "resnet"):
        dynamic |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
        size *= 2  # at its own size the resampling of a ViT's positions would be left out
    program = torch.onnx.export(
        model, (torch.zeros(2, 3, size, size),), dynamo=True, verbose=False, dynamic_shapes={"pixel_values": dynamic},
        input_names=["pixel_values"], output_names=["last_hidden_state", "pooler_output"],
    )  # fmt: skip
    (folder / "onnx").mkdir()
    program.save(folder / "onnx" / "model.onnx")
