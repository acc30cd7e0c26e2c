"""ONNX files compute what the card recommends, by the code of the card."""

import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoModel

from hssl_hf.publish.export import export_backbone
from hssl_hf.publish.onnx import save_onnx
from tests.conftest import MAE, TINY_VIT, tiny_model, tiny_siamese
from tests.faults import refused
from tests.publish.test_export import run_snippet

ONNX = {
    "hssl": (tiny_model, "main", ["pooler_output"]),
    "siamese_im": (tiny_siamese, "main", ["pooler_output", "hidden_states"]),
    "siamese_im for timm": (tiny_siamese, "timm", ["pooler_output"]),
    "siamese_im with layer scale": (
        lambda: tiny_siamese(backbone_kwargs={**TINY_VIT, "init_values": 0.1}), "main", ["pooler_output"]
    ),
    "mae": (lambda: tiny_siamese(**MAE), "main", ["pooler_output"]),
}  # fmt: skip


@pytest.mark.parametrize("name", ONNX)
def test_onnxruntime_computes_the_features_that_the_card_recommends(name, tmp_path, forked_parity, monkeypatch):
    """By the code of the card, which gives the same features as its code for transformers; axes have names.

    The export has compared the outputs at two sizes, and the card reports the difference of each.
    """
    make, kind, outputs = ONNX[name]
    folder = export_backbone(make(), tmp_path / "export", kind=kind, onnx=True)
    Image.fromarray((np.arange(40 * 40 * 3) % 251).astype(np.uint8).reshape(40, 40, 3)).save(tmp_path / "image.png")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repository, **_: repository)
    card = (folder / "README.md").read_text()
    scope = run_snippet(card, folder, tmp_path / "image.png", number=1)
    names = [output.name for output in scope["session"].get_outputs()]
    assert names == ["last_hidden_state", *outputs]
    (pixels,) = scope["session"].get_inputs()
    assert (pixels.name, pixels.shape[0], scope["session"].get_outputs()[0].shape[0]) == ("pixel_values", "batch", "batch")
    assert kind == "timm" or "layer scale" in name or pixels.shape == ["batch", 3, "height", "width"]
    if kind == "main":
        parity_facts = yaml.safe_load((folder / "facts.yaml").read_text())["parity"]
        sizes = (32, 48) if "height" in pixels.shape else (32,)
        compared = {f"size_{size}/onnx_{name}" for size in sizes for name in names}
        assert compared == {name for name in parity_facts if "onnx" in name}
        assert all(name in card and parity_facts[name] <= 1e-4 for name in compared)
        with torch.no_grad():
            expected = run_snippet(card, folder, tmp_path / "image.png")
        for value in {"features", "cls"} & expected.keys():
            actual = torch.from_numpy(scope[value])
            torch.testing.assert_close(actual, expected[value], atol=1e-5, rtol=1e-4)
    else:
        model = AutoModel.from_pretrained(folder).eval()
        with torch.no_grad():
            expected = model.timm_model(torch.from_numpy(scope["pixels"]))
        torch.testing.assert_close(torch.from_numpy(scope["features"]), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [tiny_model, tiny_siamese], ids=["hssl", "siamese_im"])
def test_vision_transformers_in_timm(make, tmp_path, forked_parity):
    folder = export_backbone(make().eval(), tmp_path / "timm", kind="timm")
    assert yaml.safe_load((folder / "facts.yaml").read_text())["parity"]["size_32/timm"] <= 1e-4


@pytest.mark.fault("missing extras")
@pytest.mark.parametrize("missing", ["onnxruntime", "onnxscript"])
def test_the_extra_of_onnx_is_named_where_it_is_not_installed(monkeypatch, tmp_path, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with refused(missing, "pip install 'hssl-hf[onnx]'"):
        save_onnx(tmp_path, image_size=32, num_channels=3)
