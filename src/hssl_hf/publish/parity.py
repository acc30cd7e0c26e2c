"""Does an export compute what the model computed? Compared in a fresh process that cannot import this package.

The process loads the folder as a user would: with transformers' Auto classes and its pipeline, with timm, or with onnxruntime.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BitImageProcessor

from hssl_hf.errors import UserError
from hssl_hf.modules.backbone import Backbone, has_norm

TOLERANCE = 1e-4
ROUNDED = 2e-2  # of pixels, about two gray levels: timm resizes images of 8 bits, and rounds
TRANSFORMERS = """
from transformers import AutoImageProcessor, AutoModel, pipeline
model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
model.eval()
extra = {"interpolate_pos_encoding": True} if model.config.model_type == "vit" else {}
with torch.no_grad():
    for name, pixels in inputs.items():
        if name.startswith("size_"):
            output = model(torch.from_numpy(pixels), output_hidden_states=True, **extra)
            found[f"{name}/last_hidden_state"], found[f"{name}/pooler_output"] = output.last_hidden_state, output.pooler_output
            found[f"{name}/hidden_states"] = output.hidden_states[-1]
image = Image.fromarray(inputs["image"])
found["processor"] = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
found["pipeline"] = pipeline("image-feature-extraction", model=folder)(image, pool=True, return_tensors=True)
report = {key: sorted(map(str, value)) for key, value in report.items() if value}
"""
TIMM = """
import timm
model, report = timm.create_model(f"local-dir:{folder}", pretrained=True).eval(), {}
with torch.no_grad():
    for name, pixels in inputs.items():
        if name.startswith("size_"):
            found[f"{name}/timm"] = model(torch.from_numpy(pixels))
"""
ONNX = """
import onnxruntime
session, report = onnxruntime.InferenceSession(f"{folder}/onnx/model.onnx", providers=["CPUExecutionProvider"]), {}
for name, pixels in inputs.items():
    if name.startswith("size_"):
        for output, value in zip(session.get_outputs(), session.run(None, {"pixel_values": pixels})):
            found[f"{name}/onnx_{output.name}"] = value
"""
FRAME = """
import json, sys
sys.modules["hssl_hf"] = None  # importing it fails from here on
import numpy as np, torch
from PIL import Image
folder, given, results = sys.argv[1:]
inputs, found = dict(np.load(given)), {{}}
{body}
np.savez(results, **{{name: np.asarray(value) for name, value in found.items()}})
print(json.dumps(report))
"""


class ExportError(UserError):
    """An export that does not equal the model it came from; nothing is left behind."""


@torch.no_grad()
def compare(
    base: Backbone, folder: Path, sizes: list[int], processor: BitImageProcessor, library: str = TRANSFORMERS
) -> dict[str, float]:
    """Load the folder in a fresh process without this package and compare it with the base, on fixed images.

    Args:
        base: what the export was made from.
        folder: the export.
        sizes: sides of the images in pixels.
        processor: the image processor that was saved beside the weights.
        library: TRANSFORMERS, TIMM or ONNX.
    Returns:
        largest difference of every output, as a fraction of the largest value.
    Raises:
        ExportError: if loading reports anything, or a difference exceeds 1e-4; of pixels that timm prepares 2e-2.
    """
    generator = torch.Generator().manual_seed(0)
    images = {f"size_{size}": torch.randn(2, 3, size, size, generator=generator) for size in sizes}
    found = _read(folder, {name: image.numpy() for name, image in images.items()}, library)
    like_timm, training = reads_like_timm(folder), base.training
    base.eval()
    expected = {}
    for name, image in images.items():
        expected |= {f"{name}/{key}": value for key, value in _outputs(base, image, like_timm).items()}
    if "processor" in found:
        expected["processor"] = processor(_image(), return_tensors="pt")["pixel_values"]
        expected["pipeline"] = _outputs(base, torch.from_numpy(found["processor"]), like_timm)["pooler_output"]
    base.train(training)
    differences = {}
    for name in sorted(found):
        if (own := name.replace("onnx_", "")) in expected:
            allowed = ROUNDED if name == "processor" and like_timm else TOLERANCE
            differences[name] = _difference(name, expected[own], found[name], allowed)
    return differences


def reads_like_timm(folder: Path) -> bool:
    """Whether transformers reads this model through timm, whose transforms and outputs it passes on."""
    return json.loads((folder / "config.json").read_text())["model_type"] == "timm_wrapper"


def _outputs(base: Backbone, pixels: Tensor, like_timm: bool) -> dict[str, Tensor]:
    """The expected outputs of a model, by their names; maps of other architectures come in layouts of their own.

    A stock `ViTModel` always has a final norm; timm's has none where the base was trained without one.
    """
    tokens, _ = base(pixels.to(next(base.parameters()).device))
    outputs = {"timm": tokens.cls, "pooler_output": tokens.cls}
    if not base.is_transformer:
        return outputs
    hidden = torch.cat([tokens.cls[:, None], tokens.patches.flatten(1, 2)], dim=1)
    if not has_norm(base) and not like_timm:
        outputs["hidden_states"] = hidden
        hidden = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:], eps=base.model.blocks[0].norm1.eps)
    return {**outputs, "last_hidden_state": hidden, "pooler_output": hidden[:, 0]}


def _image() -> Image.Image:
    """A photograph's worth of smooth color and noise, wider than high."""
    row, column = np.mgrid[0:120, 0:160]
    waves = np.stack([np.sin(row / 9), np.cos(column / 7), np.sin((row + column) / 11)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 12, waves.shape)
    return Image.fromarray((128 + 90 * waves + noise).clip(0, 255).astype(np.uint8))


def _read(folder: Path, inputs: dict[str, np.ndarray], library: str) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as scratch:
        given, results = Path(scratch) / "inputs.npz", Path(scratch) / "outputs.npz"
        np.savez(given, image=np.asarray(_image()), **inputs)
        command = [sys.executable, "-c", FRAME.format(body=library), str(folder), str(given), str(results)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ExportError(f"the export in {folder} does not load: {done.stderr[-2000:]}")
        report = json.loads(done.stdout.splitlines()[-1])
        if report:
            raise ExportError(f"the export in {folder} does not load cleanly: {report}")
        return dict(np.load(results))


def _difference(what: str, ours: Tensor, theirs: np.ndarray, allowed: float) -> float:
    ours = ours.float().cpu().numpy()
    difference = float(np.abs(ours - theirs.reshape(ours.shape)).max() / max(1.0, np.abs(ours).max()))
    if not difference <= allowed:
        raise ExportError(f"the export differs from the model: {what} by {difference:.2e}, allowed are {allowed:.0e}")
    return difference
