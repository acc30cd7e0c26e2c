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
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import BitImageProcessor

from hssl_hf.backbone import Backbone, timm_arguments
from hssl_hf.card import backbone_card
from hssl_hf.checkpoint import STATE, CheckpointError, Checkpoints
from hssl_hf.modeling_hssl import HSSLForPreTraining
from hssl_hf.modeling_siamese_im import SiameseIMForPreTraining
from hssl_hf.recipe import Recipe, load_recipe
from hssl_hf.stock import has_norm, image_processor, is_stock_vit, save_timm_wrapper, to_vit
from hssl_hf.student_teacher import StudentTeacherModel

MODELS = {model.config_class.model_type: model for model in (HSSLForPreTraining, SiameseIMForPreTraining)}
TOLERANCE = 1e-4
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
    found = {n: model(torch.from_numpy(x), output_hidden_states=True, **extra) for n, x in np.load(images).items()}
arrays = {f"{n}/{k}": o[k].numpy() for n, o in found.items() for k in ("last_hidden_state", "pooler_output")}
arrays |= {f"{n}/hidden_states": o.hidden_states[-1].numpy() for n, o in found.items()}
np.savez(outputs, **arrays)
print(json.dumps({key: sorted(map(str, value)) for key, value in report.items() if value}))
"""


class ExportError(RuntimeError):
    """An export that does not equal the model it came from; nothing is left behind."""


def export_backbone(
    model: StudentTeacherModel,
    folder: Path | str,
    *,
    network: str | None = None,
    processor: BitImageProcessor | None = None,
) -> Path:
    """Write the base model as a stock transformers folder and prove that it is equal.

    Args:
        model: the pre-trained model.
        folder: where to; replaced if it is an export already.
        network: "teacher" or "student"; by default the one that the method keeps.
        processor: saved beside the weights; by default `image_processor` at the model's image size.
    Returns:
        the folder.
    Raises:
        ExportError: if the reloaded model differs from ours or does not load cleanly.
        ValueError: if the folder holds something else.
    """
    folder = Path(folder)
    refuse_foreign(folder)
    network = network or model.kept_network
    base, processor = model.network(network).base, processor or image_processor(model.config.image_size)
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        if is_stock_vit(base):
            to_vit(base, model.config.image_size).save_pretrained(draft)
        else:
            config = model.config
            arguments = timm_arguments(config.backbone, config.image_size, config.backbone_kwargs or {})
            save_timm_wrapper(base.model, base.timm_state_dict(), config.backbone, arguments, processor, draft)
        processor.save_pretrained(draft)
        (draft / "README.md").write_text(backbone_card(model.config, network, without_norm=not has_norm(base)))
        check_export(base, draft, model.config.image_size)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def refuse_foreign(folder: Path) -> None:
    """Raise a ValueError if a folder to be written holds something else than a model."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "config.json").is_file())):
        raise ValueError(f"{folder} is not empty and is no export; choose another folder")


def load_model(path: Path) -> tuple[StudentTeacherModel, Recipe]:
    """The model of a run, for use outside of its training.

    Args:
        path: folder of a run (its newest checkpoint is taken) or of one checkpoint.
    Returns:
        the model and the `Recipe` of the run.
    Raises:
        CheckpointError: if the folder holds no complete checkpoint.
    """
    path = path.resolve()
    checkpoint = path if (path / STATE).is_file() else next(reversed(Checkpoints(path / "checkpoints").all()), None)
    if checkpoint is None:
        raise CheckpointError(f"{path} holds no complete checkpoint; expected a folder of a run, or one of its checkpoints")
    recipe = load_recipe(checkpoint.parents[1] / "recipe.yaml")
    config = recipe.model_config()
    model = MODELS[config.model_type](config)
    model.load_state_dict(load_file(checkpoint / "model.safetensors"))
    return model, recipe


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
        if not base.is_transformer:
            _compare(f"{name}: pooler_output", tokens.cls, found[f"{name}/pooler_output"].reshape(tokens.cls.shape))
            continue
        hidden = torch.cat([tokens.cls[:, None], tokens.patches.flatten(1, 2)], dim=1)
        if not has_norm(base):
            _compare(f"{name}: hidden_states[-1]", hidden, found[f"{name}/hidden_states"])
            hidden = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:], eps=base.model.blocks[0].norm1.eps)
        _compare(f"{name}: pooler_output", hidden[:, 0], found[f"{name}/pooler_output"])
        _compare(f"{name}: last_hidden_state", hidden, found[f"{name}/last_hidden_state"])
    base.train(training)


def _compare(what: str, ours: Tensor, theirs: np.ndarray) -> None:
    ours = ours.float().cpu().numpy()
    difference = float(np.abs(ours - theirs).max() / max(1.0, np.abs(ours).max()))
    if not difference <= TOLERANCE:
        raise ExportError(f"the export differs from the model: {what} by {difference:.2e}, allowed are {TOLERANCE:.0e}")
