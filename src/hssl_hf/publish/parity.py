"""Parity check: an export has to compute the same outputs as the trained model, in a process that cannot import this package.

That process loads the folder as a user would: with transformers' Auto classes and its pipeline, with a backbone class of
transformers, with timm, or with onnxruntime.

Transformers' pipeline converts every image to RGB and timm's transforms take Pillow images of one or three channels, so these
are compared for such images only.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BitImageProcessor

from hssl_hf.errors import UserError
from hssl_hf.modules.backbone import Backbone, has_norm
from hssl_hf.publish.to_backbone import feature_maps

TOLERANCE = 1e-4
PIXEL_TOLERANCE = 2e-2  # of normalized pixels, about two gray levels: timm resizes images of 8 bits, and rounds
TRANSFORMERS = """
from transformers import AutoModel
model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
model.eval()
kwargs = {"interpolate_pos_encoding": True} if model.config.model_type == "vit" else {}
for name, pixels in images.items():
    output = model(torch.from_numpy(pixels), output_hidden_states=True, **kwargs)
    outputs[f"{name}/last_hidden_state"] = output.last_hidden_state
    outputs[f"{name}/pooler_output"] = output.pooler_output
    outputs[f"{name}/hidden_states"] = output.hidden_states[-1]
report = {key: sorted(map(str, value)) for key, value in info.items() if value}
"""
PROCESSOR = """
from transformers import AutoImageProcessor
outputs["processor"] = AutoImageProcessor.from_pretrained(folder)(photo, return_tensors="pt")["pixel_values"]
"""
PIPELINE = """
from transformers import pipeline
outputs["pipeline"] = pipeline("image-feature-extraction", model=folder)(photo, pool=True, return_tensors=True)
"""
BACKBONE = """
import transformers
name, = transformers.AutoConfig.from_pretrained(folder).architectures
model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
model.eval()
for name, pixels in images.items():
    maps = model(torch.from_numpy(pixels)).feature_maps
    outputs |= {f"{name}/{stage}": value for stage, value in zip(model.out_features, maps, strict=True)}
report = {key: sorted(map(str, value)) for key, value in info.items() if value}
"""
TIMM = """
import timm
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
outputs |= {f"{name}/timm": model(torch.from_numpy(pixels)) for name, pixels in images.items()}
"""
ONNX = """
import onnxruntime
session = onnxruntime.InferenceSession(f"{folder}/onnx/model.onnx", providers=["CPUExecutionProvider"])
for name, pixels in images.items():
    for output, value in zip(session.get_outputs(), session.run(None, {"pixel_values": pixels})):
        outputs[f"{name}/onnx_{output.name}"] = value
"""
PROGRAM = """
import json, sys
sys.modules["hssl_hf"] = None  # importing it fails from here on
import numpy as np, torch
from PIL import Image
torch.set_grad_enabled(False)
folder, images_path, outputs_path = sys.argv[1:]
images, outputs, report = dict(np.load(images_path)), {{}}, {{}}
photo = images.pop("photo")
photo = torch.from_numpy(photo) if len(photo) <= 4 else Image.fromarray(photo)  # two or four bands come first
{scripts}
np.savez(outputs_path, **{{name: np.asarray(value) for name, value in outputs.items()}})
print(json.dumps(report))
"""


class ExportError(UserError):
    """An export that does not compute the same as the model it was made from; it is deleted."""


@torch.no_grad()
def compare(
    base: Backbone, folder: Path, sizes: list[int], processor: BitImageProcessor, scripts: Iterable[str] = (TRANSFORMERS,)
) -> dict[str, float]:
    """Load the folder in a fresh process without this package and compare its outputs with those of the base on fixed images.

    Args:
        base: the exported network.
        folder: the export.
        sizes: sides of the images in pixels.
        processor: the image processor that was saved with the weights.
        scripts: TRANSFORMERS or BACKBONE, and TIMM or ONNX to compare what those libraries load too.
    Returns:
        largest difference of every output, as a fraction of the largest value.
    Raises:
        ExportError: if the model does not load cleanly, or a difference exceeds 1e-4; of pixels that timm preprocesses 2e-2.
    """
    generator, channels = torch.Generator().manual_seed(0), base.num_channels
    images = {f"size_{size}": torch.randn(2, channels, size, size, generator=generator) for size in sizes}
    wrapped = json.loads((folder / "config.json").read_text())["model_type"] == "timm_wrapper"  # timm's transforms and outputs
    on_photo = [PROCESSOR] if channels in (1, 3) or not wrapped else []
    on_photo += [PIPELINE] if channels == 3 and BACKBONE not in scripts else []
    photo = _test_image(channels)
    actual = _run(folder, {"photo": np.asarray(photo), **images}, [*scripts, *on_photo])
    training = base.training
    base.eval()
    expected = {"processor": processor(photo, return_tensors="pt")["pixel_values"]}
    if "pipeline" in actual:
        expected["pipeline"] = _expected_outputs(base, torch.from_numpy(actual["processor"]), wrapped)["pooler_output"]
    for name, image in images.items():
        outputs = feature_maps(base, image) if BACKBONE in scripts else _expected_outputs(base, image, wrapped)
        expected |= {f"{name}/{key}": value for key, value in outputs.items()}
    base.train(training)
    differences = {}
    for name in sorted(actual):
        if (key := name.replace("onnx_", "")) in expected:
            tolerance = PIXEL_TOLERANCE if name == "processor" and wrapped else TOLERANCE
            differences[name] = _difference(name, expected[key], actual[name], tolerance)
    return differences


def _expected_outputs(base: Backbone, pixels: Tensor, wrapped: bool) -> dict[str, Tensor]:
    """Expected outputs by name; for other architectures than ViT only the pooled ones, since layouts of feature maps differ.

    A stock `ViTModel` always has a final norm; timm's has none where the base was trained without one.
    """
    tokens, _ = base(pixels.to(next(base.parameters()).device))
    outputs = {"timm": tokens.cls, "pooler_output": tokens.cls}
    if not base.is_transformer:
        return outputs
    hidden = torch.cat([tokens.cls[:, None], tokens.patches.flatten(1, 2)], dim=1)
    if not has_norm(base) and not wrapped:
        outputs["hidden_states"] = hidden
        hidden = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:], eps=base.model.blocks[0].norm1.eps)
    return {**outputs, "last_hidden_state": hidden, "pooler_output": hidden[:, 0]}


def _test_image(channels: int) -> Image.Image | Tensor:
    """Smooth colors and noise like those of a photograph, wider than high; (C, H, W) uint8 for two and four channels."""
    row, column = np.mgrid[0:120, 0:160]
    waves = [np.sin(row / 9), np.cos(column / 7), np.sin((row + column) / 11), np.cos((row - column) / 13)]
    waves = np.stack(waves[:channels], axis=-1)
    noise = np.random.default_rng(0).normal(0, 12, waves.shape)
    pixels = (128 + 90 * waves + noise).clip(0, 255).astype(np.uint8)
    if channels in (1, 3):
        return Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _run(folder: Path, images: dict[str, Tensor | np.ndarray], scripts: Iterable[str]) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as scratch:
        images_path, outputs_path = Path(scratch) / "images.npz", Path(scratch) / "outputs.npz"
        np.savez(images_path, **images)
        program = PROGRAM.format(scripts="".join(scripts))
        command = [sys.executable, "-c", program, str(folder), str(images_path), str(outputs_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ExportError(f"the export in {folder} cannot be loaded: {done.stderr[-2000:]}")
        report = json.loads(done.stdout.splitlines()[-1])
        if report:
            raise ExportError(f"expected the export in {folder} to load cleanly, got {report}; nothing was written")
        return dict(np.load(outputs_path))


def _difference(name: str, expected: Tensor, actual: np.ndarray, tolerance: float) -> float:
    expected = expected.float().cpu().numpy()
    difference = float(np.abs(expected - actual.reshape(expected.shape)).max() / max(1.0, np.abs(expected).max()))
    if not difference <= tolerance:
        raise ExportError(
            f"the export differs from the trained model: {name} by {difference:.2e}, expected at most {tolerance:.0e}; nothing "
            "was written. Check the weights for values that are not finite, and the GPU for reduced precision (TF32)"
        )
    return difference
