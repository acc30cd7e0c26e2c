"""MoCo v3 checkpoints: encoders, projectors and predictor compute the same as the official ones; training continues."""

import pytest
import torch

from hssl_hf import HSSLForPreTraining
from hssl_hf.convert import ConversionError, convert_checkpoint, from_moco_v3, read_checkpoint
from hssl_hf.publish.citations import CITATIONS
from tests.conftest import tiny_views
from tests.convert.official import SIZE, moco_v3


@pytest.fixture
def official(tmp_path):
    content, networks = moco_v3()
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    return networks, tmp_path / "checkpoint.pth.tar"


def test_queries_and_keys_equal_the_official_ones(official):
    networks, path = official
    model = from_moco_v3(read_checkpoint(path), num_heads=2).eval()
    pixels = torch.randn(4, 3, SIZE, SIZE)
    for name, network in (("base_encoder", model.student), ("momentum_encoder", model.teacher)):
        encoder, head = networks[name]
        expected = head.eval()(encoder.forward_features(pixels)[:, 0])
        actual = network.heads.project("base", network(pixels[None]).base.cls[0])
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
        if network is model.student:
            predicted = networks["predictor"].eval()(expected)
            torch.testing.assert_close(network.heads.predict("base", actual), predicted, atol=1e-3, rtol=1e-3)


def test_training_continues_with_frozen_patch_embedding_and_positions(official, tmp_path, unchecked):
    _, path = official
    convert_checkpoint(path, tmp_path / "full", for_pretraining=True, backbone_kwargs={"num_heads": 2})
    model, info = HSSLForPreTraining.from_pretrained(tmp_path / "full", output_loading_info=True)
    assert not any(info.values()) and model.config.license == "cc-by-nc-4.0"
    card = (tmp_path / "full" / "README.md").read_text()
    assert "a checkpoint of MoCo v3, as the layout of the file suggests." in card and "not for commercial use" in card
    assert CITATIONS["MoCo v3"] in card and CITATIONS["HSSL"] not in card
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.student.parameters(), lr=0.01)
    model.train()(**tiny_views(local=0, grid=None)).loss.backward()
    optimizer.step()
    frozen = {name for name, p in model.student.named_parameters() if torch.equal(p, before[f"student.{name}"])}
    assert frozen == {"base.model.pos_embed", "base.model.patch_embed.proj.weight", "base.model.patch_embed.proj.bias"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("predictor.0.weight"), "missing: .*predictor.0.weight"),
        (lambda s: s.update({"base_encoder.conv1.weight": torch.ones(1)}), "got a ResNet"),
        (lambda s: s["momentum_encoder.pos_embed"].add_(1), "expected the same fixed pos_embed"),
        (lambda s: s.pop("base_encoder.head.6.weight"), "expected a checkpoint of MoCo v3"),
    ],
)
def test_mismatched_checkpoint_is_refused(official, spoil, message):
    checkpoint = read_checkpoint(official[1])
    spoil(checkpoint.state)
    with pytest.raises(ConversionError, match=message):
        from_moco_v3(checkpoint, num_heads=2)


def test_default_is_twelve_heads(official):
    with pytest.raises(ConversionError, match="12 attention heads do not divide the width 64"):
        from_moco_v3(read_checkpoint(official[1]))
