"""Exports for feature maps: compared at two sizes and in a fresh process, refused where there is no class for them."""

import pytest
import torch
import yaml

from hssl_hf.publish.export import ExportError, export_backbone
from hssl_hf.publish.to_backbone import to_backbone
from tests.conftest import tiny_model, tiny_siamese
from tests.publish.test_export import model_on


@pytest.mark.parametrize("make", [tiny_model, tiny_siamese], ids=["hssl", "siamese_im"])
def test_feature_maps_of_vision_transformers_are_compared_at_two_sizes(make, tmp_path, forked_parity):
    model = make().eval()
    folder = export_backbone(model, tmp_path / "export", kind="backbone")
    facts = yaml.safe_load((folder / "facts.yaml").read_text())
    assert set(facts["parity"]) == {"processor", *(f"size_{size}/stage{i}" for size in (32, 48) for i in (1, 2))}
    assert max(facts["parity"].values()) <= 1e-4 and facts["backbone_class"] == "Dinov2Backbone"
    assert "size_48/stage1" in (folder / "README.md").read_text()


def test_different_feature_maps_are_refused(trained, tmp_path, monkeypatch, forked_parity):
    from hssl_hf.publish import export

    def damaged(base, image_size):
        native = to_backbone(base, image_size)
        native.encoder.layer[0].layer_scale2.lambda1.data[0] += 1
        return native

    monkeypatch.setattr(export, "to_backbone", damaged)
    with pytest.raises(ExportError, match=r"differs from the trained model: size_32/stage1 by"):
        export_backbone(trained, tmp_path / "export", kind="backbone")
    assert list(tmp_path.iterdir()) == []


def test_no_feature_maps_where_transformers_has_no_class_for_them(trained, tmp_path):
    with pytest.raises(
        ValueError, match=r"expected a ViT, ConvNeXt, ResNet or Swin .*, got poolformer_s12; choose the kind timm"
    ):
        export_backbone(model_on("poolformer_s12")[0], tmp_path / "export", kind="backbone")
    with pytest.raises(ValueError, match="expected the kind main or timm for an ONNX file, got backbone"):
        export_backbone(trained, tmp_path / "export", kind="backbone", onnx=True)
    assert list(tmp_path.iterdir()) == []


def test_timm_returns_the_feature_maps_of_other_architectures(tmp_path, unchecked):
    """With the arguments of the code in the card."""
    import timm

    model, pixels, _ = model_on("poolformer_s12")
    folder = export_backbone(model, tmp_path / "timm", kind="timm")
    card = (export_backbone(model, tmp_path / "main") / "README.md").read_text()
    assert 'timm.create_model("hf-hub:user/name@timm", pretrained=True, features_only=True)' in card
    backbone = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True).eval()
    with torch.no_grad():
        last, expected = backbone(pixels)[-1], model.get_network().base.model.forward_features(pixels)
    torch.testing.assert_close(last, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_feature_maps_of_other_architectures_are_compared_in_a_fresh_process(backbone, tmp_path):
    folder = export_backbone(model_on(backbone)[0], tmp_path / "export", kind="backbone")
    names = {name.split("/")[-1] for name in yaml.safe_load((folder / "facts.yaml").read_text())["parity"]}
    assert names == {"processor", "stage1", "stage2", "stage3", "stage4"}
