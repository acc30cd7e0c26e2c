"""MAE checkpoints: with decoder a model to continue training, without decoder a backbone."""

import pytest
import torch
from transformers import AutoModel

from hssl_hf import HSSLMAEConfig, HSSLMAEForPreTraining
from hssl_hf.convert import ConversionError, base_from_mae, convert_checkpoint, from_mae, read_checkpoint
from hssl_hf.publish.citations import CITATIONS
from tests.convert.official import PATCH, SIZE, WIDTH, under, vit
from tests.models.test_modeling_mae import DECODER, views

NAMES = {"projector.embed": "decoder_embed", "decoder.blocks": "decoder_blocks", "decoder.norm": "decoder_norm"}


def official() -> tuple[HSSLMAEForPreTraining, dict]:
    """A model of ours, and its weights under official names."""
    torch.manual_seed(0)
    kwargs = {"patch_size": PATCH, "embed_dim": WIDTH, "depth": 2, "num_heads": 1}
    model = HSSLMAEForPreTraining(
        HSSLMAEConfig(backbone="vit_base_patch16_224", backbone_kwargs=kwargs, image_size=SIZE, auxiliary=None, **DECODER)
    ).train()
    with torch.no_grad():
        for p in model.student.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    state = under("", model.student.base.model) | under("norm.", model.student.base.norm)
    for name, value in model.student.pixels.state_dict().items():
        for ours, theirs in {**NAMES, "decoder.prediction": "decoder_pred", "decoder.mask_token": "mask_token"}.items():
            name = name.replace(ours, theirs) if name.startswith(ours) else name
        state[name] = value.clone()
    positions = model.student.pixels.decoder.positions
    state["decoder_pos_embed"] = torch.cat([torch.zeros(1, positions.shape[1]), positions])[None]
    return model, state


def test_loss_and_gradients_equal_those_of_the_original_model(tmp_path, unchecked):
    model, state = official()
    torch.save({"model": state, "epoch": 3}, tmp_path / "mae.pth")
    heads = {"backbone_kwargs": {"num_heads": 1}, "decoder_num_attention_heads": 2}
    convert_checkpoint(tmp_path / "mae.pth", tmp_path / "full", for_pretraining=True, **heads)
    loaded, info = HSSLMAEForPreTraining.from_pretrained(tmp_path / "full", output_loading_info=True)
    assert not any(info.values()) and loaded.config.license == "cc-by-nc-4.0"
    losses = [each.train()(**views()).loss for each in (model, loaded)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for (name, p), q in zip(model.student.named_parameters(), loaded.student.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, q.grad, msg=name)


@pytest.mark.parametrize("with_decoder", [False, True])
def test_encoder_is_a_stock_backbone(tmp_path, with_decoder, unchecked):
    encoder = vit(4)
    decoder = {name: value for name, value in official()[1].items() if "decoder" in name or name == "mask_token"}
    torch.save({"model": under("", encoder) | (decoder if with_decoder else {})}, tmp_path / "mae.pth")
    kwargs = {"backbone_kwargs": {"num_heads": 1}, "method": None if with_decoder else "mae"}
    convert_checkpoint(tmp_path / "mae.pth", tmp_path / "stock", **kwargs)
    pixels = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        actual = AutoModel.from_pretrained(tmp_path / "stock").eval()(pixels).last_hidden_state
        torch.testing.assert_close(actual, encoder.forward_features(pixels), atol=1e-4, rtol=1e-4)
    card = (tmp_path / "stock" / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card and "not for commercial use" in card
    assert CITATIONS["MAE"] in card and CITATIONS["HSSL"] not in card
    evidence = "as the layout of the file suggests" if with_decoder else "as it was named for the conversion"
    assert f"converted from the file `mae.pth`: a checkpoint of MAE, {evidence}." in card


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("decoder_pred.bias"), "missing: decoder_pred.bias"),
        (
            lambda s: s.update({"decoder_pos_embed": s["decoder_pos_embed"] + 1}),
            "expected a fixed sine-cosine position embedding",
        ),
        (lambda s: s.pop("decoder_embed.weight"), "encoder only"),
        (lambda s: s.update({"extra": torch.ones(1)}), "unexpected: extra"),
    ],
)
def test_mismatched_checkpoint_is_refused(tmp_path, spoil, message):
    _, state = official()
    spoil(state)
    torch.save({"model": state}, tmp_path / "mae.pth")
    with pytest.raises(ConversionError, match=message):
        from_mae(read_checkpoint(tmp_path / "mae.pth"), num_heads=1, decoder_num_attention_heads=2)


def test_encoder_with_an_unknown_tensor_is_refused(tmp_path):
    torch.save({"model": under("", vit(4)) | {"extra": torch.ones(1)}}, tmp_path / "mae.pth")
    with pytest.raises(ConversionError, match="unexpected: extra"):
        base_from_mae(read_checkpoint(tmp_path / "mae.pth"), num_heads=1)
