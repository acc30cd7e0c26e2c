"""MoCo v3 checkpoints: encoders, projectors and predictor compute what the official ones do; and training goes on."""

import pytest
import torch

from hssl_hf import HSSLForPreTraining
from hssl_hf.convert import ConversionError, convert_checkpoint, from_moco_v3, read_checkpoint
from tests.conftest import tiny_views
from tests.convert.official import SIZE, moco_v3


@pytest.fixture
def official(tmp_path):
    content, parts = moco_v3()
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    return parts, tmp_path / "checkpoint.pth.tar"


def test_queries_and_keys_are_the_official_ones(official):
    parts, path = official
    model = from_moco_v3(read_checkpoint(path), num_heads=2).eval()
    pixels = torch.randn(4, 3, SIZE, SIZE)
    for name, network in (("base_encoder", model.student), ("momentum_encoder", model.teacher)):
        encoder, head = parts[name]
        expected = head.eval()(encoder.forward_features(pixels)[:, 0])
        found = network.heads.project("base", network(pixels[None]).base.cls[0])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        if network is model.student:
            predicted = parts["predictor"].eval()(expected)
            torch.testing.assert_close(network.heads.predict("base", found), predicted, atol=1e-3, rtol=1e-3)


def test_training_goes_on_with_patch_embedding_and_positions_as_they_are(official, tmp_path, unchecked):
    _, path = official
    convert_checkpoint(path, tmp_path / "whole", for_pretraining=True, backbone_kwargs={"num_heads": 2})
    model, info = HSSLForPreTraining.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not any(info.values()) and model.config.license == "cc-by-nc-4.0"
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.student.parameters(), lr=0.01)
    model.train()(**tiny_views(local=0, grid=None)).loss.backward()
    optimizer.step()
    still = {name for name, p in model.student.named_parameters() if torch.equal(p, before[f"student.{name}"])}
    assert still == {"base.model.pos_embed", "base.model.patch_embed.proj.weight", "base.model.patch_embed.proj.bias"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("module.predictor.0.weight"), "missing: .*predictor.0.weight"),
        (lambda s: s.update({"module.base_encoder.conv1.weight": torch.ones(1)}), "got a ResNet"),
        (lambda s: s["module.momentum_encoder.pos_embed"].add_(1), "expected one fixed table"),
        (lambda s: s.pop("module.base_encoder.head.6.weight"), "this is no MoCo v3 checkpoint"),
    ],
)
def test_what_does_not_fit_is_refused(official, spoil, message):
    checkpoint = read_checkpoint(official[1])
    spoil(checkpoint.state)
    with pytest.raises(ConversionError, match=message):
        from_moco_v3(checkpoint, num_heads=2)


def test_twelve_heads_unless_told_otherwise(official):
    with pytest.raises(ConversionError, match="12 attention heads do not divide the width 64"):
        from_moco_v3(read_checkpoint(official[1]))
