import pytest
import timm
import torch
from timm.layers import DropPath

from hssl_hf.modules.backbone import Backbone, repeated_blocks
from tests.conftest import TINY_VIT, tiny_model, tiny_siamese

FAMILIES = {  # name: (arguments, image size, grid at that size)
    "vit_tiny_patch16_224": ({"depth": 2}, 224, 14),
    "resnet18": ({}, 224, 7),
    "swin_tiny_patch4_window7_224": ({"depths": (1, 1, 1, 1)}, 224, 7),
    "convnext_atto": ({"depths": (1, 1, 1, 1)}, 224, 7),
    "poolformer_s12": ({}, 224, 7),
    "resmlp_12_224": ({"num_blocks": 2}, 224, 14),
}


def tiny(**arguments) -> Backbone:
    torch.manual_seed(0)
    return Backbone("vit_tiny_patch16_224", 32, TINY_VIT, **arguments).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_tokens_of_timm(name):
    """cls is timm's pooled feature, patches are its feature map; before and after the final norm."""
    kwargs, size, grid = FAMILIES[name]
    if name == "resmlp_12_224":
        kwargs = {}
    torch.manual_seed(0)
    backbone = Backbone(name, size, kwargs).eval()
    pixels = torch.randn(2, 3, size, size)
    tokens, features = backbone(pixels)
    assert backbone.grid == (grid, grid)
    assert tokens.cls.shape == (2, backbone.width)
    assert tokens.patches.shape == features.shape == (2, grid, grid, backbone.width)
    model = timm.create_model(name, num_classes=0, **kwargs).eval()
    model.load_state_dict(backbone.timm_state_dict())
    torch.testing.assert_close(tokens.cls, model(pixels), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(backbone.norm(features), tokens.patches, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "resmlp_12_224"])
@pytest.mark.parametrize("size", [96, 32])
def test_families_take_small_images_and_return_to_large_ones(name, size):
    kwargs, large, _ = FAMILIES[name]
    backbone = Backbone(name, large, kwargs).eval()
    with torch.no_grad():
        before = backbone(torch.ones(1, 3, large, large))[0].cls
        tokens, _ = backbone(torch.randn(1, 3, size, size))
        assert tokens.patches.shape[1:3] == (size // backbone.stride,) * 2
        torch.testing.assert_close(backbone(torch.ones(1, 3, large, large))[0].cls, before)


def test_gradients_reach_every_parameter():
    backbone = tiny(mask_token=True)
    bool_masked_pos = torch.zeros(2, 4, 4, dtype=torch.bool)
    bool_masked_pos[0, 1, 2] = True
    tokens, _ = backbone(torch.randn(2, 3, 32, 32), bool_masked_pos)
    (tokens.cls.square().sum() + tokens.patches.square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in backbone.named_parameters() if "bias" not in n)


def test_hidden_patches_have_no_influence():
    """Changing the pixels under the mask changes no output; changing others does."""
    backbone = tiny(mask_token=True)
    pixels, bool_masked_pos = torch.randn(1, 3, 32, 32), torch.zeros(1, 4, 4, dtype=torch.bool)
    bool_masked_pos[0, 1, 2] = True
    changed = pixels.clone()
    changed[..., 8:16, 16:24] += 5
    with torch.no_grad():
        torch.testing.assert_close(backbone(changed, bool_masked_pos)[0].patches, backbone(pixels, bool_masked_pos)[0].patches)
        assert (backbone(changed)[0].patches - backbone(pixels)[0].patches).abs().max() > 1e-2
        assert (backbone(pixels, bool_masked_pos)[0].patches - backbone(pixels)[0].patches).abs().max() > 1e-3


def test_visible_only_equals_all_patches_when_none_is_left_out():
    backbone, pixels = tiny(), torch.randn(2, 3, 32, 32)
    tokens, _ = backbone(pixels)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).expand(2, -1)
    visible, features = backbone.encode_visible(pixels, order)
    torch.testing.assert_close(backbone.norm(features), visible.patches)
    torch.testing.assert_close(visible.cls, tokens.cls)
    torch.testing.assert_close(visible.patches, tokens.patches.flatten(1, 2)[:, order[0]])


def test_patches_left_out_have_no_influence():
    backbone, pixels = tiny(), torch.randn(1, 3, 32, 32)
    kept = torch.tensor([[0, 3, 9, 15]])
    changed = pixels.clone()
    changed[..., 8:16, 16:24] += 5  # patch 6
    torch.testing.assert_close(
        backbone.encode_visible(changed, kept)[0].patches, backbone.encode_visible(pixels, kept)[0].patches
    )
    assert backbone.encode_visible(pixels, kept)[0].patches.shape == (1, 4, 64)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto", "poolformer_s12"])
def test_drop_path_rises_over_base_and_head_together(name):
    """Released HSSL code: one linspace over depth + D values; 12 + 3 at .1 gives the base 0 to .0786, the head up to .1."""
    kwargs = {"swin_tiny_patch4_window7_224": {"depths": (2, 2, 6, 2)}, "convnext_atto": {"depths": (3, 3, 3, 3)}}.get(name, {})
    backbone = Backbone(name, 224, kwargs, drop_path_rate=0.1, following_blocks=3)
    expected = torch.linspace(0, 0.1, 15)
    rates = [module.drop_prob for module in backbone.modules() if isinstance(module, DropPath)]
    assert sorted(set(rates)) == pytest.approx(sorted(expected[1:12].tolist()))
    assert rates == sorted(rates) and backbone.rates == pytest.approx(expected[12:].tolist())


def test_unknown_model_names_the_nearest():
    with pytest.raises(ValueError, match=r"no model 'vit_smal_patch16_224'.*vit_small_patch16_224"):
        Backbone("vit_smal_patch16_224", 224)


def test_sizes_that_patches_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="30 pixels do not divide into patches of 8"):
        Backbone("vit_tiny_patch16_224", 30, TINY_VIT)
    with pytest.raises(ValueError, match=r"\(30, 32\) pixels do not divide"):
        tiny()(torch.zeros(1, 3, 30, 32))


def test_masks_need_a_transformer_and_a_mask_token():
    with pytest.raises(ValueError, match=r"masking patches needs a vision transformer.*'resnet18'"):
        Backbone("resnet18", 64, mask_token=True)
    with pytest.raises(ValueError, match="has no mask token"):
        tiny()(torch.zeros(1, 3, 32, 32), torch.zeros(1, 4, 4, dtype=torch.bool))


@pytest.mark.parametrize("kwargs", [{"num_heads": 5}, {"embed_dimm": 3}, {"depth": "two"}])
def test_arguments_that_timm_cannot_take_are_refused(kwargs):
    with pytest.raises(ValueError, match=r"timm cannot make 'vit_tiny_patch16_224' with backbone_kwargs="):
        Backbone("vit_tiny_patch16_224", 32, {"patch_size": 8, "embed_dim": 32, **kwargs})


def test_blocks_are_the_units_of_sharding():
    assert repeated_blocks(tiny_model(auxiliary_depth=2).student) == ["CheckpointedBlock", "ConvNeXtBlock"]
    assert repeated_blocks(tiny_siamese().student) == ["CheckpointedBlock", "DecoderBlock"]
    resnet = tiny_model(
        backbone="resnet26", backbone_kwargs=None, objective="dino", auxiliary=None, cls_supervision=["base->base"]
    )
    assert "Bottleneck" in repeated_blocks(resnet.student)
