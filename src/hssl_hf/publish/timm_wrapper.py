"""Weights under timm's names, in a folder that transformers and timm both load."""

import json
from pathlib import Path

import timm
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BitImageProcessor

from hssl_hf.modules.backbone import is_plain_vit


def save_timm_wrapper(
    model: nn.Module, state: dict[str, Tensor], architecture: str, arguments: dict, processor: BitImageProcessor, folder: Path
) -> None:
    """Write weights under timm's names with a configuration that transformers and timm both read.

    Args:
        model: the timm model; with a classifier it is exported as `TimmWrapperForImageClassification`.
        state: its weights.
        architecture, arguments: name and arguments for `timm.create_model`.
        processor: image processor, whose size and normalization become those of timm's transforms.
        folder: to write `config.json` and `model.safetensors` to.
    """
    channels = len(processor.image_mean)
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
            "input_size": [channels, size, size],
            "interpolation": "bicubic",
            "crop_pct": size / processor.size["shortest_edge"],
            "fixed_input_size": pretrained.fixed_input_size,
            "num_classes": model.num_classes,
            "first_conv": pretrained.first_conv if channels == 3 else None,  # older versions of timm would adapt it again
            "classifier": pretrained.classifier,
        },
    }
    (folder / "config.json").write_text(json.dumps(description, indent=2))
    state = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
