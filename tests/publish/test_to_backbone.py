"""Backbones of transformers: maps of every stage, weights that return to timm's names, variants that are not converted."""

import pytest
import torch
from torch import nn
from transformers import Dinov2Backbone, Dinov2Config, ResNetBackbone

from hssl_hf.modules.backbone import Backbone
from hssl_hf.publish.to_backbone import BACKBONES, feature_maps, to_backbone
from hssl_hf.publish.to_transformers import _fuse_qkv, _split_qkv, map_names, to_transformers
from tests.publish.test_to_transformers import BASES, random_base

CLASSES = {
    "VisionTransformer": "Dinov2Backbone",
    "ConvNeXt": "ConvNextBackbone",
    "ResNet": "ResNetBackbone",
    "SwinTransformer": "SwinBackbone",
}
VARIANTS = [*BASES, "vit with layer scale", "vit without norm"]


def base_of(variant: str) -> tuple[Backbone, int]:
    if variant == "vit with layer scale":
        return random_base("vit", init_values=0.1)
    base, size = random_base("vit" if variant == "vit without norm" else variant)
    if variant == "vit without norm":
        base.norm = nn.Identity()
    return base.eval(), size


def weights_under_timms_names(native: nn.Module, base: Backbone) -> dict[str, torch.Tensor]:
    """By the table read from right to left; without the constants that the base lacks."""
    table = BACKBONES[type(base.model).__name__]
    own = set(map_names(_split_qkv(base.timm_state_dict()), table.names).values())
    state = {name: value for name, value in native.state_dict().items() if name in own or name not in table.constants(base)}
    names = map_names(state, {theirs: timms for timms, theirs in table.names.items()})
    return _fuse_qkv({names[name]: value for name, value in state.items()})


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip_keeps_every_bit(variant):
    base, size = base_of(variant)
    native = to_backbone(base, size)
    assert type(native).__name__ == CLASSES[type(base.model).__name__] and not native.training
    expected, weights = base.timm_state_dict(), weights_under_timms_names(native, base)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name].reshape(value.shape), value) for name, value in expected.items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_backbone_loads_cleanly_and_returns_the_maps_at_every_size(variant, tmp_path):
    base, size = base_of(variant)
    to_backbone(base, size).save_pretrained(tmp_path)
    native, report = BACKBONES[type(base.model).__name__].model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    for height, width in ((size, size), (size + 2 * base.stride, size + base.stride)):
        pixels = torch.randn(2, 3, height, width)
        expected = feature_maps(base, pixels)
        with torch.no_grad():
            actual = dict(zip(native.out_features, native(pixels).feature_maps, strict=True))
        for name, value in actual.items():
            torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)
        assert [expected[name].shape[1] for name in native.out_features] == native.channels


@pytest.mark.parametrize("variant", ["vit", "vit without norm", "swin"])
def test_last_map_is_the_patches(variant):
    base, size = base_of(variant)
    pixels = torch.randn(2, 3, size, size)
    maps = list(feature_maps(base, pixels).values())
    assert torch.equal(maps[-1], base(pixels)[0].patches.permute(0, 3, 1, 2))


def test_maps_of_a_vit_are_those_of_its_first_blocks():
    """A base of the first block alone has the first map as its patches."""
    base, size = base_of("vit")
    pixels = torch.randn(2, 3, size, size)
    expected = feature_maps(base, pixels)["stage1"]
    base.model.blocks = base.model.blocks[:1]
    assert torch.equal(expected, base(pixels)[0].patches.permute(0, 3, 1, 2))


def test_maps_of_a_resnet_end_in_its_features():
    base, size = base_of("resnet with basic blocks")
    pixels = torch.randn(2, 3, size, size)
    maps = list(feature_maps(base, pixels).values())
    torch.testing.assert_close(maps[-1].mean((2, 3)), base(pixels)[0].cls)
    assert [value.shape[-1] for value in maps] == [size // 4, size // 8, size // 16, size // 32]


@pytest.mark.parametrize("variant", ["convnext", "swin"])
def test_earlier_stages_are_normalized_without_parameters(variant):
    base, size = base_of(variant)
    *maps, last = feature_maps(base, torch.randn(2, 3, size, size)).values()
    for value in maps:
        torch.testing.assert_close(value.mean(1), torch.zeros_like(value[:, 0]), atol=1e-5, rtol=0)
        torch.testing.assert_close(value.var(1, correction=0), torch.ones_like(value[:, 0]), atol=1e-2, rtol=0)
    norm = base.norm if variant == "swin" else base.model.head.norm
    torch.testing.assert_close(
        ((last - norm.bias[:, None, None]) / norm.weight[:, None, None]).mean(1), last[:, 0] * 0, atol=1e-5, rtol=0
    )


def test_configuration_of_a_vit_chooses_the_blocks_of_ibot():
    base = Backbone("vit_tiny_patch16_224", 32, {"embed_dim": 8, "num_heads": 2, "patch_size": 16, "depth": 12})
    config = to_backbone(base, 32).config
    assert config.out_features == ["stage4", "stage6", "stage8", "stage12"] and config.stage_names[0] == "stem"
    assert config.apply_layernorm and not config.use_mask_token and config.layer_norm_eps == 1e-6
    base.norm = nn.Identity()
    config = to_backbone(base, 32).config
    assert not config.apply_layernorm and config.features == "hidden_states"
    assert Dinov2Config.from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_layer_scales_are_ones_unless_they_were_trained():
    scales = {
        variant: [value for name, value in to_backbone(*base_of(variant)).state_dict().items() if "lambda1" in name]
        for variant in ("vit", "vit with layer scale")
    }
    assert all(torch.equal(value, torch.ones(64)) for value in scales["vit"])
    assert len(scales["vit with layer scale"]) == 4 and all((value < 0.2).all() for value in scales["vit with layer scale"])


@pytest.mark.parametrize("timm_class", BACKBONES)
def test_no_row_of_a_table_is_superfluous(timm_class):
    bases = [base for base, _ in map(base_of, VARIANTS) if type(base.model).__name__ == timm_class]
    names = {name for base in bases for name in _split_qkv(base.timm_state_dict())}
    table = BACKBONES[timm_class].names
    for row in table:
        with pytest.raises(ValueError, match="expected one counterpart"):
            map_names(names, {timms: theirs for timms, theirs in table.items() if timms != row})


@pytest.mark.parametrize(
    ("backbone", "kwargs"),
    [
        ("vit", {"reg_tokens": 2}),
        ("vit", {"act_layer": "quick_gelu"}),
        ("vit", {"mlp_ratio": 1.5}),
        ("convnext", {"use_grn": True}),
        ("resnet with basic blocks", {"stem_type": "deep", "stem_width": 32}),
    ],
)
def test_variants_that_transformers_computes_differently_are_not_converted(backbone, kwargs):
    assert to_backbone(*random_base(backbone, **kwargs)) is None


def test_stock_resnet_is_its_own_backbone(tmp_path):
    """Without norms of its own, `ResNetBackbone` loads the stock model as it is."""
    base, size = base_of("resnet with basic blocks")
    to_transformers(base, size).save_pretrained(tmp_path)
    native, report = ResNetBackbone.from_pretrained(tmp_path, output_loading_info=True, out_features=["stage2", "stage4"])
    assert not any(report.values())
    pixels = torch.randn(1, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(native(pixels).feature_maps[0], feature_maps(base, pixels)["stage2"])


def test_training_mode_of_the_base_is_kept():
    base, size = base_of("vit")
    assert isinstance(to_backbone(base.train(), size), Dinov2Backbone) and base.training
