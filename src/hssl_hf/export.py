"""A pre-trained model -> a stock transformers repository of its base alone.

Vision transformers become `ViTModel`, every other timm model `TimmWrapperModel`; both load with plain
`AutoModel.from_pretrained`, without this package. Every export is loaded again in a fresh process that cannot import this
package, and compared with our own outputs on fixed images at two sizes.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BitImageProcessor, ViTConfig, ViTModel

from hssl_hf.backbone import Backbone, timm_arguments
from hssl_hf.checkpoint import STATE, CheckpointError, Checkpoints
from hssl_hf.configuration_hssl import HSSLConfig
from hssl_hf.modeling_hssl import HSSLForPreTraining
from hssl_hf.recipe import Recipe, load_recipe
from hssl_hf.views import IMAGENET_MEAN, IMAGENET_STD

TOLERANCE = 1e-4
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
CHECK = """
import json, sys
sys.modules["hssl_hf"] = None  # importing it fails from here on
import numpy as np, torch
from transformers import AutoImageProcessor, AutoModel
folder, images, outputs = sys.argv[1:]
model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
AutoImageProcessor.from_pretrained(folder)
model.eval()
extra = {"interpolate_pos_encoding": True} if model.config.model_type == "vit" else {}
with torch.no_grad():
    found = {n: model(torch.from_numpy(x), **extra) for n, x in np.load(images).items()}
kept = ("last_hidden_state", "pooler_output")
np.savez(outputs, **{f"{n}/{k}": o[k].numpy() for n, o in found.items() for k in kept})
print(json.dumps({key: sorted(map(str, value)) for key, value in report.items() if value}))
"""


class ExportError(RuntimeError):
    """An export that does not equal the model it came from; nothing is left behind."""


def export_backbone(
    model: HSSLForPreTraining,
    folder: Path | str,
    *,
    network: str = "teacher",
    processor: BitImageProcessor | None = None,
) -> Path:
    """Write the base model as a stock transformers folder and prove that it is equal.

    Args:
        model: the pre-trained model.
        folder: where to; replaced if it is an export already.
        network: "teacher" or "student".
        processor: saved beside the weights; by default `image_processor` at the model's image size.
    Returns:
        the folder.
    Raises:
        ExportError: if the reloaded model differs from ours or does not load cleanly.
        ValueError: if the folder holds something else.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not empty and is no export; choose another folder")
    base, processor = getattr(model, network).base, processor or image_processor(model.config.image_size)
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        if is_stock_vit(base):
            to_vit(base, model.config.image_size).save_pretrained(draft)
        else:
            save_timm_wrapper(base, model.config, processor, draft)
        processor.save_pretrained(draft)
        check_export(base, draft, model.config.image_size)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def load_model(path: Path) -> tuple[HSSLForPreTraining, Recipe]:
    """The model of a run, for use outside of its training.

    Args:
        path: folder of a run (its newest checkpoint is taken) or of one checkpoint.
    Returns:
        the `HSSLForPreTraining` and the `Recipe` of the run.
    Raises:
        CheckpointError: if the folder holds no complete checkpoint.
    """
    path = path.resolve()
    checkpoint = path if (path / STATE).is_file() else next(reversed(Checkpoints(path / "checkpoints").all()), None)
    if checkpoint is None:
        raise CheckpointError(f"{path} holds no complete checkpoint; expected a folder of a run, or one of its checkpoints")
    recipe = load_recipe(checkpoint.parents[1] / "recipe.yaml")
    model = HSSLForPreTraining(recipe.model_config())
    model.load_state_dict(load_file(checkpoint / "model.safetensors"))
    return model, recipe


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


def is_stock_vit(base: Backbone) -> bool:
    """Whether transformers' `ViTModel` has a place for every weight of the base."""
    block = {"norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
    known = {"cls_token", "pos_embed", "patch_embed.proj", "norm"}
    names = {name.removesuffix(".weight").removesuffix(".bias") for name in base.timm_state_dict()}
    return base.is_transformer and all(
        name in known or (name.startswith("blocks.") and name.split(".", 2)[2] in block) for name in names
    )


def to_vit(base: Backbone, image_size: int) -> ViTModel:
    """The base as a `ViTModel` whose pooler is the identity, so that `pooler_output` is the normalised class token."""
    timm_model = base.model
    attention = timm_model.blocks[0].attn
    config = ViTConfig(
        hidden_size=base.width,
        num_hidden_layers=len(timm_model.blocks),
        num_attention_heads=attention.num_heads,
        intermediate_size=timm_model.blocks[0].mlp.fc1.out_features,
        layer_norm_eps=base.norm.eps,
        image_size=image_size,
        patch_size=timm_model.patch_embed.patch_size[0],
        qkv_bias=attention.qkv.bias is not None,
        pooler_act="linear",
    )
    vit = ViTModel(config)
    state: dict[str, Tensor] = {
        "pooler.dense.weight": torch.eye(base.width),
        "pooler.dense.bias": torch.zeros(base.width),
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


def _vit_name(name: str) -> str:
    prefix = ""
    if name.startswith("blocks."):
        _, layer, name = name.split(".", 2)
        prefix = f"layers.{layer}."
    stem, dot, kind = name.rpartition(".")
    return prefix + (f"{VIT_NAMES[stem]}.{kind}" if kind in ("weight", "bias") and dot else VIT_NAMES[name])


def save_timm_wrapper(base: Backbone, config: HSSLConfig, processor: BitImageProcessor, folder: Path) -> None:
    """Write the weights under timm's names with a configuration that transformers and timm both read."""
    pretrained, size = timm.get_pretrained_cfg(config.backbone), config.image_size
    description = {
        "model_type": "timm_wrapper",
        "architectures": ["TimmWrapperModel"],
        "architecture": config.backbone,
        "num_classes": 0,
        "num_features": base.width,
        "global_pool": getattr(base.model, "global_pool", "avg") if base.is_transformer else "avg",
        "model_args": timm_arguments(config.backbone, size, config.backbone_kwargs or {}),
        "pretrained_cfg": {
            "mean": processor.image_mean,
            "std": processor.image_std,
            "input_size": [3, size, size],
            "interpolation": "bicubic",
            "crop_pct": size / processor.size["shortest_edge"],
            "fixed_input_size": pretrained.fixed_input_size,
            "num_classes": 0,
            "first_conv": pretrained.first_conv,
            "classifier": pretrained.classifier,
        },
    }
    (folder / "config.json").write_text(json.dumps(description, indent=2))
    state = {key: value.detach().cpu().contiguous().clone() for key, value in base.timm_state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def check_export(base: Backbone, folder: Path, image_size: int) -> None:
    """Load the folder in a fresh process without this package and compare it with the base.

    Raises:
        ExportError: if loading reports anything, or an output differs by more than 1e-4 of the largest value.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = [image_size, image_size + base.stride * 2] if base.is_transformer else [image_size]
    images = {f"size_{size}": torch.randn(2, 3, size, size, generator=generator) for size in sizes}
    with tempfile.TemporaryDirectory() as scratch:
        inputs, outputs = Path(scratch) / "inputs.npz", Path(scratch) / "outputs.npz"
        np.savez(inputs, **{name: image.numpy() for name, image in images.items()})
        command = [sys.executable, "-c", CHECK, str(folder), str(inputs), str(outputs)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ExportError(f"the export in {folder} does not load: {done.stderr[-2000:]}")
        report = json.loads(done.stdout.splitlines()[-1])
        if report:
            raise ExportError(f"the export in {folder} does not load cleanly: {report}")
        found = dict(np.load(outputs))
    training, device = base.training, next(base.parameters()).device
    base.eval()
    for name, image in images.items():
        tokens, _ = base(image.to(device))
        _compare(f"{name}: pooler_output", tokens.cls, found[f"{name}/pooler_output"].reshape(tokens.cls.shape))
        if base.is_transformer:
            hidden = torch.cat([tokens.cls[:, None], tokens.patches.flatten(1, 2)], dim=1)
            _compare(f"{name}: last_hidden_state", hidden, found[f"{name}/last_hidden_state"])
    base.train(training)


def _compare(what: str, ours: Tensor, theirs: np.ndarray) -> None:
    ours = ours.float().cpu().numpy()
    difference = float(np.abs(ours - theirs).max() / max(1.0, np.abs(ours).max()))
    if not difference <= TOLERANCE:
        raise ExportError(f"the export differs from the model: {what} by {difference:.2e}, allowed are {TOLERANCE:.0e}")
