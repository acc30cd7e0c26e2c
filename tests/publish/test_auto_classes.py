"""Every Auto class on every branch of a repository and every architecture: class, load report, outputs.

`pytest -m slow -s tests/publish/test_auto_classes.py` prints the table.
"""

import pytest
import timm
import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import RevisionNotFoundError
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

from hssl_hf.publish.export import CardContext
from hssl_hf.publish.hub import push, stage
from hssl_hf.publish.to_backbone import feature_maps
from tests.hub_server.server import TOKEN
from tests.publish.test_backbone_in_models import MODELS, on

pytestmark = pytest.mark.slow
ARCHITECTURES = {**MODELS, "poolformer": lambda: on("poolformer_s12", {})}
STOCK = {"convnext": "ConvNext", "resnet": "ResNet", "swin": "Swin", "poolformer": "TimmWrapper"}
BACKBONES = {"vit": "Dinov2Backbone", "vit without norm": "Dinov2Backbone"}
BACKBONES |= {name: f"{STOCK[name]}Backbone" for name in ("convnext", "resnet", "swin")}
NEW_HEAD = {
    "classifier.weight",
    "classifier.bias",
    "classifier.1.weight",
    "classifier.1.bias",
    "timm_model.head.fc.weight",
    "timm_model.head.fc.bias",
}


@pytest.fixture(params=ARCHITECTURES)
def published(request, hub, tmp_path, unchecked, monkeypatch):
    """Name of the architecture, the model, and its repository pushed to the Hub, whose cache is empty."""
    model = ARCHITECTURES[request.param]().eval()
    push(stage(model, tmp_path / "push", context=CardContext(repository="user/name")), "user/name", token=TOKEN, private=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return request.param, model


def row(architecture: str, loaded, branch: str, report: dict, equal_to: str) -> None:
    entries = ", ".join(sorted(str(name) for names in report.values() for name in names))
    print("|", " | ".join([architecture, branch, type(loaded).__name__, equal_to, entries or "empty"]), "|")


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_every_class_loads_cleanly_and_computes_the_same(published):
    name, model = published
    base, size = model.get_network().base, model.config.image_size
    pixels = torch.randn(2, 3, size, size)
    expected = model.encode(pixels).cls
    stock = STOCK.get(name, "ViT")

    config, processor = AutoConfig.from_pretrained("user/name"), AutoImageProcessor.from_pretrained("user/name")
    assert type(config).__name__ == f"{stock}Config" and processor.crop_size["height"] == size
    loaded, report = AutoModel.from_pretrained("user/name", output_loading_info=True)
    outputs = loaded.eval()(pixels, output_hidden_states=name == "vit without norm")
    close(outputs.hidden_states[-1][:, 0] if name == "vit without norm" else outputs.pooler_output.flatten(1), expected)
    assert type(loaded).__name__ == f"{stock}Model" and not any(report.values())
    row(name, loaded, "main", report, "class token or pooled map of the base")
    classifier, report = AutoModelForImageClassification.from_pretrained("user/name", num_labels=3, output_loading_info=True)
    assert set(report["missing_keys"]) <= NEW_HEAD
    assert all(name.startswith("pooler.") for name in report["unexpected_keys"]), (
        "the pooler of a ViT, which a classifier lacks"
    )
    assert classifier(pixels).logits.shape == (2, 3)
    row(name, classifier, "main", report, "(a new classifier)")

    close(
        timm.create_model(f"local-dir:{snapshot_download('user/name', revision='timm')}", pretrained=True).eval()(pixels),
        expected,
    )
    loaded, report = AutoModel.from_pretrained("user/name", revision="timm", output_loading_info=True)
    close(loaded.eval()(pixels).pooler_output.flatten(1), expected)
    assert not any(report.values())
    row(name, loaded, "timm", report, "the base, as `timm.create_model`")

    if name in BACKBONES:
        backbone_class = getattr(transformers, BACKBONES[name])  # AutoBackbone needs the real Hub, even for a folder
        loaded, report = backbone_class.from_pretrained("user/name", revision="backbone", output_loading_info=True)
        maps = feature_maps(base, pixels)
        assert type(loaded).__name__ == BACKBONES[name] and not any(report.values())
        for stage_name, value in zip(loaded.out_features, loaded.eval()(pixels).feature_maps, strict=True):
            close(value, maps[stage_name])
        row(name, loaded, "backbone", report, "feature maps of the base")
        loaded, report = AutoModel.from_pretrained("user/name", revision="backbone", output_loading_info=True)
        row(name, loaded, "backbone", report, "(another model, against which the card warns)")
    else:
        with pytest.raises(RevisionNotFoundError):
            snapshot_download("user/name", revision="backbone")

    loaded, report = AutoModel.from_pretrained("user/name", revision="training", output_loading_info=True)
    outputs = loaded.eval()(pixel_values=pixels, output_hidden_states=name == "vit without norm")
    close(outputs.hidden_states[-1][:, 0] if name == "vit without norm" else outputs.pooler_output, expected)
    assert type(loaded).__name__ == type(model).__name__.replace("ForPreTraining", "Model") and not any(report.values())
    row(name, loaded, "training", report, "class token of the base")
    full, report = AutoModelForPreTraining.from_pretrained("user/name", revision="training", output_loading_info=True)
    assert type(full) is type(model) and not any(report.values())
    assert all(torch.equal(value, full.state_dict()[key]) for key, value in model.state_dict().items())
    row(name, full, "training", report, "student, teacher and heads, to the bit")
