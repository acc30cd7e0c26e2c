"""Exports compute the same as our backbone, also in a fresh process without this package."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, ViTModel

from hssl_hf.evaluation.encoder import load_encoder
from hssl_hf.publish import parity
from hssl_hf.publish.export import MARKER, CardContext, ExportError, export_backbone, export_model, update_card
from hssl_hf.publish.image_processor import image_processor
from hssl_hf.publish.to_transformers import to_transformers
from tests.conftest import MAE, TINY_VIT, tiny_model, tiny_siamese
from tests.faults import refused

OTHERS = {  # timm model -> its arguments, image size, class in transformers
    "resnet18": ({}, 64, "ResNetModel"),
    "resnet50": ({}, 64, "ResNetModel"),
    "convnext_atto": ({"depths": (1, 1, 1, 1)}, 64, "ConvNextModel"),
    "swin_tiny_patch4_window7_224": ({"depths": (1, 1, 1, 1)}, 224, "SwinModel"),
    "poolformer_s12": ({}, 64, "TimmWrapperModel"),
    "resnet50d": ({}, 64, "TimmWrapperModel"),
}


def test_vit_is_stock_and_computes_the_same_at_every_size(trained, tmp_path):
    """`export_backbone` compares in a fresh process; this compares the tokens at the training size and another."""
    folder = export_backbone(trained, tmp_path / "export")
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model) is ViTModel and not any(report.values())
    assert not [name for name in model.state_dict() if "auxiliary" in name or "head" in name]
    trained.eval()
    for size in (32, 48):
        pixels = torch.randn(2, 3, size, size)
        with torch.no_grad():
            output, tokens = model(pixels, interpolate_pos_encoding=True), trained.encode(pixels)
        torch.testing.assert_close(output.last_hidden_state[:, 0], tokens.cls, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(output.last_hidden_state[:, 1:], tokens.patches.flatten(1, 2), atol=1e-5, rtol=1e-4)
        assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0]), "the pooler is the identity"


def test_student_and_teacher_are_different_exports(trained, tmp_path, unchecked):
    pixels = torch.randn(1, 3, 32, 32)
    trained.eval()
    for network in ("student", "teacher"):
        export_backbone(trained, tmp_path / network, network=network)
        actual = AutoModel.from_pretrained(tmp_path / network)(pixels).pooler_output
        torch.testing.assert_close(actual, trained.encode(pixels, network).cls, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(trained.encode(pixels, "student").cls, trained.encode(pixels, "teacher").cls, atol=1e-3)


def test_siamese_features_are_those_before_the_norm(tmp_path, forked_parity):
    """The student's tokens are `hidden_states[-1]` at two sizes, and the encoder for evaluation uses these."""
    model = tiny_siamese().eval()
    with torch.no_grad():
        model.teacher.base.model.cls_token.add_(1.0)
    folder = export_backbone(model, tmp_path / "export")
    stock, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(stock) is ViTModel and not any(report.values()) and stock.config.layer_norm_eps == 1e-6
    encoder, _ = load_encoder(folder)
    for size in (32, 48):
        pixels = torch.randn(2, 3, size, size)
        output = stock.eval()(pixels, output_hidden_states=True, interpolate_pos_encoding=True)
        with torch.no_grad():
            tokens = model.encode(pixels, "student")
        torch.testing.assert_close(output.hidden_states[-1][:, 0], tokens.cls, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(output.hidden_states[-1][:, 1:], tokens.patches.flatten(1, 2), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(output.last_hidden_state[:, 0], tokens.cls, atol=0.01)
    cls, patches = encoder(torch.ones(2, 3, 32, 32))
    expected = model.encode(torch.ones(2, 3, 32, 32), "student")
    torch.testing.assert_close(cls, expected.cls, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(patches, expected.patches, atol=1e-5, rtol=1e-4)


def run_snippet(card: str, folder, image, number: int = 0) -> dict:
    """Run Python code of a card as a user would, with the names of repository and image replaced."""
    code = card.split("```python\n")[1 + number].split("```")[0]
    scope = {}
    exec(code.replace("user/name", str(folder)).replace("image.png", str(image)), scope)
    return scope


@pytest.mark.parametrize("kind", ["hssl", "siamese_im", "mae"])
def test_code_of_the_card_computes_the_features(kind, tmp_path, unchecked):
    model = {"hssl": tiny_model, "siamese_im": tiny_siamese, "mae": lambda: tiny_siamese(**MAE)}[kind]().eval()
    folder = export_backbone(model, tmp_path / "export")
    Image.fromarray((np.arange(40 * 40 * 3) % 251).astype(np.uint8).reshape(40, 40, 3)).save(tmp_path / "image.png")
    card = (folder / "README.md").read_text()
    scope = run_snippet(card, folder, tmp_path / "image.png")
    with torch.no_grad():
        tokens = model.encode(scope["inputs"]["pixel_values"])
    expected = tokens.cls
    if kind == "siamese_im":
        torch.testing.assert_close(scope["cls"], tokens.cls, atol=1e-5, rtol=1e-4)
        expected = torch.nn.functional.layer_norm(tokens.patches.mean((1, 2)), (64,), eps=1e-6)
    torch.testing.assert_close(scope["features"], expected, atol=1e-5, rtol=1e-4)
    assert card.startswith("---\n") and "library_name: transformers" in card and "license:" not in card
    assert ("hidden_states[-1]" in card) == (kind == "siamese_im")
    name = {"hssl": "by HSSL", "siamese_im": "by SiameseIM", "mae": "by MAE"}[kind]
    assert f"# ViT of width 64, depth 2 and patch size 8 {name}\n" in card
    if kind == "hssl":
        assert (
            "The teacher's base after pre-training by heterogeneous self-supervised learning: iBOT with a ConvNeXt head" in card
        )


def test_a_model_with_layer_scale_and_without_norm_has_its_tokens_in_the_last_hidden_state(tmp_path, unchecked):
    """transformers has no ViT with a layer scale, and its wrapper of timm returns maps as hidden states."""
    model = tiny_siamese(backbone_kwargs={**TINY_VIT, "init_values": 0.1}).eval()
    folder = export_backbone(model, tmp_path / "export")
    Image.fromarray((np.arange(40 * 40 * 3) % 251).astype(np.uint8).reshape(40, 40, 3)).save(tmp_path / "image.png")
    with torch.no_grad():
        scope = run_snippet((folder / "README.md").read_text(), folder, tmp_path / "image.png")
        tokens = model.encode(scope["inputs"]["pixel_values"])
    expected = torch.nn.functional.layer_norm(tokens.patches.mean((1, 2)), (64,), eps=1e-6)
    torch.testing.assert_close(scope["features"], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(scope["cls"], tokens.cls, atol=1e-5, rtol=1e-4)


def model_on(backbone: str):
    kwargs, size, class_name = OTHERS[backbone]
    model = tiny_model(backbone=backbone, backbone_kwargs=kwargs, image_size=size, objective="dino", auxiliary="resnet")
    return model.eval(), torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)), class_name


@pytest.mark.parametrize("backbone", OTHERS)
def test_other_architectures_are_stock_models(backbone, tmp_path, unchecked):
    """A class of transformers if it computes the same, else `TimmWrapperModel`; and timm's names on request."""
    import timm

    model, pixels, class_name = model_on(backbone)
    with torch.no_grad():
        for norm in [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]:
            norm.running_mean.normal_(0, 0.1)
        expected = model.encode(pixels)
    folder = export_backbone(model, tmp_path / "export")
    stock, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(stock).__name__ == class_name and not any(report.values())
    encoder, _ = load_encoder(folder)
    cls, patches = encoder(pixels)
    torch.testing.assert_close(cls, expected.cls, atol=1e-5, rtol=1e-4)
    assert patches.shape == expected.patches.shape
    card = (folder / "README.md").read_text()
    assert "features = model(**inputs).pooler_output" in card and "without a norm" not in card
    export_backbone(model, tmp_path / "timm", kind="timm")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    torch.testing.assert_close(loaded(pixels), expected.cls, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", OTHERS)
@pytest.mark.parametrize("kind", ["main", "timm"])
def test_other_architectures_compute_the_same_in_a_fresh_process(backbone, kind, tmp_path):
    folder = export_backbone(model_on(backbone)[0], tmp_path / "export", kind=kind, onnx=kind == "main")
    names = {name.split("/")[-1] for name in yaml.safe_load((folder / "facts.yaml").read_text())["parity"]}
    assert {"pooler_output", "pipeline", "processor"} <= names
    assert ("timm" in names) == (kind == "timm" or OTHERS[backbone][2] == "TimmWrapperModel")
    assert ("onnx_pooler_output" in names) == (kind == "main")


def test_processor_crops_and_normalizes(trained, tmp_path, unchecked):
    processor = image_processor(32, crop_pct=0.5, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    export_backbone(trained, tmp_path / "export", processor=processor)
    loaded = AutoImageProcessor.from_pretrained(tmp_path / "export")
    image = torch.zeros(3, 64, 128, dtype=torch.uint8)
    image[:, 16:48, 48:80] = 255
    pixels = loaded([image], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    torch.testing.assert_close(pixels, torch.full_like(pixels, 2.0)), "only the white center remains, at (1 - .5) / .25"


def test_different_outputs_are_refused_and_nothing_is_written(trained, tmp_path, monkeypatch, forked_parity):
    from hssl_hf.publish import export

    def damaged(base, image_size):
        vit = to_transformers(base, image_size)
        vit.layers[0].mlp.fc1.weight.data[0, 0] += 1
        return vit

    monkeypatch.setattr(export, "to_transformers", damaged)
    with pytest.raises(ExportError, match=r"differs from the trained model: (pipeline|size_32/\w+) by"):
        export_backbone(trained, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_missing_weights_are_refused(trained, tmp_path, forked_parity):
    vit = to_transformers(trained.teacher.base, 32)
    vit.pooler = None
    vit.save_pretrained(tmp_path)
    image_processor(32).save_pretrained(tmp_path)
    with pytest.raises(ExportError, match=r"expected the export in .* to load cleanly.*pooler"):
        parity.compare(trained.teacher.base, tmp_path, [32], image_processor(32))


def test_earlier_export_survives_a_failed_one(trained, tmp_path, monkeypatch, unchecked):
    folder = export_backbone(trained, tmp_path / "export")
    before = (folder / "model.safetensors").read_bytes()

    def refuse(*_):
        raise ExportError("no")

    monkeypatch.setattr(parity, "compare", refuse)
    with pytest.raises(ExportError):
        export_backbone(trained, folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_full_model_whose_weights_change_on_saving_is_refused(trained, tmp_path, monkeypatch):
    save = type(trained).save_pretrained

    def save_damaged(self, folder, **kwargs):
        self.objective.cls_centers["auxiliary"].value.add_(1.0)
        save(self, folder, **kwargs)
        self.objective.cls_centers["auxiliary"].value.sub_(1.0)

    monkeypatch.setattr(type(trained), "save_pretrained", save_damaged)
    with pytest.raises(
        ExportError, match="saving and loading the model has changed its weights, so nothing was written: objective"
    ):
        export_model(trained, tmp_path / "full")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("files of a user")
@pytest.mark.parametrize("name", ["thesis.txt", "config.json", "model.safetensors", "facts.yaml", "figures/me.png", ".me"])
def test_folder_with_files_that_no_export_has_written_is_not_overwritten(trained, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("years of work")
    (tmp_path / "config.json").write_text("years of work")
    with refused(name, "choose another folder"):
        export_backbone(trained, tmp_path)
    with refused(name, "choose another folder"):
        export_model(trained, tmp_path)
    assert (tmp_path / name).read_text() == (tmp_path / "config.json").read_text() == "years of work"


@pytest.mark.fault("links in a run")
@pytest.mark.parametrize("content", ["thesis.txt\nREADME.md\nfacts.yaml\n", "", None])
def test_the_list_of_an_exports_files_is_no_link(tmp_path, content):
    """It would be overwritten where the link leads, and could declare the files of a user to be those of an export."""
    folder, private = tmp_path / "export", tmp_path / "private"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    (folder / "facts.yaml").write_text("model_type: hssl\n")
    if content is not None:
        private.write_text(content)
    (folder / MARKER).symlink_to(private)
    with refused("thesis.txt" if content is None else "link"):
        update_card(folder, CardContext())
    assert (private.read_text() if private.exists() else None) == content and (folder / "thesis.txt").exists()


@pytest.mark.fault("files of a user")
def test_only_what_an_export_has_written_is_replaced(trained, tmp_path, unchecked):
    folder = export_backbone(trained, tmp_path / "export")
    update_card(folder, CardContext(figures={"curves.png": b"a figure"}))
    (folder / ".cache").mkdir()
    (folder / ".cache" / "upload").write_text("of the Hub's client")
    export_backbone(trained, folder, kind="timm")
    (folder / "mine.txt").write_text("years of work")
    with refused("mine.txt"):
        export_backbone(trained, folder)
    assert (folder / "mine.txt").exists()


@pytest.mark.slow
def test_pipeline_extracts_features_without_this_package(trained, tmp_path):
    folder = export_backbone(trained, tmp_path / "export")
    code = f"""
import sys
sys.modules["hssl_hf"] = None
import numpy as np
from PIL import Image
from transformers import pipeline
image = Image.fromarray((np.arange(64 * 64 * 3) % 251).astype(np.uint8).reshape(64, 64, 3))
print(np.array(pipeline("image-feature-extraction", model={str(folder)!r})(image)).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    features = np.array(json.loads(done.stdout.splitlines()[-1]))
    assert features.shape == (1, 17, 64)
    image = Image.fromarray((np.arange(64 * 64 * 3) % 251).astype(np.uint8).reshape(64, 64, 3))
    pixels = image_processor(32)(image, return_tensors="pt")["pixel_values"]
    np.testing.assert_allclose(features[0, 0], trained.eval().encode(pixels).cls[0].detach(), atol=1e-4)


def test_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neither an exported folder nor a Hub repository"):
        load_encoder(tmp_path)
