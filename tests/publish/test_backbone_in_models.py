"""The code of the cards puts the weights into models for segmentation and detection, from a folder, the Hub, and its cache."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from transformers import DetrForObjectDetection, UperNetForSemanticSegmentation

from hssl_hf.publish.export import CardContext, export_backbone
from hssl_hf.publish.hub import push, stage
from hssl_hf.publish.to_backbone import feature_maps
from tests.conftest import TINY_VIT, tiny_model, tiny_siamese
from tests.hub_server.server import TOKEN

DEEPER = {**TINY_VIT, "patch_size": 16, "depth": 6}
MODELS = {
    "vit": lambda: tiny_model(backbone_kwargs=DEEPER),
    "vit without norm": lambda: tiny_siamese(backbone_kwargs=DEEPER),
    "convnext": lambda: on("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 32)}),
    "resnet": lambda: on("resnet10t", {"channels": (8, 16, 16, 32), "stem_type": "", "avg_down": False, "stem_width": 64}),
    "swin": lambda: on(
        "swin_tiny_patch4_window7_224", {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 2}
    ),
}


def on(backbone: str, kwargs: dict):
    return tiny_model(
        backbone=backbone, backbone_kwargs=kwargs, image_size=64, objective="dino", auxiliary="resnet", auxiliary_depth=1
    )


def run_all(card: str, repository: str, folder: Path, image: Path) -> dict:
    """Run all code of a card as a user would, with the names of repository and image replaced, and the models small."""
    scope: dict = {}
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        local = code.replace(f'"{repository}", revision="backbone"', repr(str(folder))).replace("image.png", str(image))
        local = local.replace("num_labels=150", "num_labels=150, hidden_size=16, auxiliary_channels=8")
        local = local.replace("num_labels=91", "num_labels=91, d_model=16, encoder_layers=1, decoder_layers=1")
        exec(local, scope)
    return scope


@pytest.fixture
def image(tmp_path) -> Path:
    Image.fromarray((np.arange(80 * 80 * 3) % 251).astype(np.uint8).reshape(80, 80, 3)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def maps_of(model, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return dict(zip(model.out_features, model.eval()(pixels).feature_maps, strict=True))


def assert_same_maps(model, expected: dict[str, torch.Tensor], pixels: torch.Tensor) -> None:
    for name, value in maps_of(model, pixels).items():
        torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-4)


NAMES = [pytest.param(name, marks=[] if name.startswith("vit") else [pytest.mark.slow]) for name in MODELS]


@pytest.mark.parametrize("name", NAMES)
def test_code_of_the_card_starts_segmentation_and_detection_from_the_weights(name, tmp_path, image, unchecked):
    """At 512 pixels the maps inside both models are those of the base, and gradients reach it."""
    model = MODELS[name]().eval()
    folder = export_backbone(model, tmp_path / "export", kind="backbone")
    card = (folder / "README.md").read_text()
    scope = run_all(card, "user/name", folder, image)
    base, pixels = model.get_network().base, torch.randn(2, 3, 512, 512)
    inputs = scope["inputs"]["pixel_values"]
    assert_same_maps(scope["backbone"], feature_maps(base, inputs), inputs)
    segmenter, detector = scope["model"], scope["detector"]
    assert type(segmenter) is UperNetForSemanticSegmentation and type(detector) is DetrForObjectDetection
    expected = feature_maps(base, pixels)
    assert_same_maps(segmenter.backbone, expected, pixels)
    assert_same_maps(detector.model.backbone.model, expected, pixels)
    detector.model.unfreeze_backbone()  # a ResNet is frozen at first
    labels = torch.zeros(2, 512, 512, dtype=torch.long)
    for trained, loss in (
        (segmenter.backbone, segmenter.train()(pixels, labels=labels).loss),
        (detector.model.backbone.model, detector.train()(pixels[:1]).pred_boxes.var()),
    ):
        loss.backward()
        gradients = [p.grad for p in trained.parameters() if p.grad is not None]
        assert torch.isfinite(loss) and any(gradient.abs().sum() > 0 for gradient in gradients)


def test_maps_come_from_the_hub_with_a_token_and_offline_from_its_cache(hub, tmp_path, image, unchecked, monkeypatch):
    model = MODELS["vit"]().eval()
    staged = stage(model, tmp_path / "push", context=CardContext(repository="user/name"))
    push(staged, "user/name", token=TOKEN, private=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    pixels = torch.randn(1, 3, 512, 512)
    expected = feature_maps(model.get_network().base, pixels)
    card = (staged / "main" / "README.md").read_text()
    code = next(code for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "UperNet" in code)
    assert 'Dinov2Backbone.from_pretrained("user/name", revision="backbone")' in code
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        before, scope = len(hub.requests), {}
        exec(code.replace("num_labels=150", "num_labels=150, hidden_size=16, auxiliary_channels=8"), scope)
        assert (len(hub.requests) == before) is offline
        assert_same_maps(scope["model"].backbone, expected, pixels)
