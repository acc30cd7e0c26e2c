"""Backbones as classes of transformers and back: equal bits, every name mapped once, unknown names refused."""

import pytest
import torch
from torch import nn

from hssl_hf.errors import UserError
from hssl_hf.modules.backbone import Backbone
from hssl_hf.publish.to_transformers import ARCHITECTURES, _split_qkv, from_transformers, map_names, to_transformers
from tests.conftest import TINY_VIT

BASES = {  # timm model, its arguments, image size, class in transformers
    "vit": ("vit_tiny_patch16_224", TINY_VIT, 32, "ViTModel"),
    "vit without qkv bias": ("vit_tiny_patch16_224", {**TINY_VIT, "qkv_bias": False}, 32, "ViTModel"),
    "convnext": ("convnext_atto", {"depths": (1, 2, 1, 1), "dims": (8, 16, 16, 32)}, 64, "ConvNextModel"),
    "convnext with linear layers": ("convnext_tiny", {"depths": (1, 2, 1, 1), "dims": (8, 16, 16, 32)}, 64, "ConvNextModel"),
    "resnet with basic blocks": ("resnet18", {}, 64, "ResNetModel"),
    "resnet with bottlenecks": ("resnet26", {}, 64, "ResNetModel"),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 16, "depths": (2, 1, 2, 1), "num_heads": (1, 1, 2, 2), "window_size": 2},
        64,
        "SwinModel",
    ),
}


def random_base(backbone: str, **kwargs) -> tuple[Backbone, int]:
    """A base without two equal weights, so that swapped names change the outputs."""
    name, arguments, size, _ = BASES[backbone]
    torch.manual_seed(0)
    base = Backbone(name, size, {**arguments, **kwargs})
    with torch.no_grad():
        for value in base.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.empty_like(value).uniform_(0 if value.ndim == 1 else -0.02, 0.02))
    return base, size


def table_of(base: Backbone) -> dict[str, str]:
    return ARCHITECTURES[type(base.model).__name__].names


@pytest.mark.parametrize("backbone", BASES)
def test_round_trip_keeps_every_bit(backbone):
    base, size = random_base(backbone)
    native = to_transformers(base, size)
    assert type(native).__name__ == BASES[backbone][3] and not native.training
    expected, weights = base.timm_state_dict(), from_transformers(native, base)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


@pytest.mark.parametrize("backbone", BASES)
def test_every_name_has_one_counterpart_whatever_the_order_of_the_rows(backbone):
    base, size = random_base(backbone)
    table = table_of(base)
    names = map_names(_split_qkv(base.timm_state_dict()), table)
    native = {name for name in to_transformers(base, size).state_dict() if not name.startswith("pooler.")}
    assert set(names.values()) == native and len(names) == len(native)
    assert map_names(names, dict(reversed(table.items()))) == names
    inverse = {theirs: timms for timms, theirs in table.items()}
    assert len(inverse) == len(table)
    assert map_names(native, inverse) == {theirs: timms for timms, theirs in names.items()}


@pytest.mark.parametrize("timm_class", ARCHITECTURES)
def test_no_row_of_a_table_is_superfluous(timm_class):
    table = ARCHITECTURES[timm_class].names
    bases = [base for base, _ in map(random_base, BASES) if type(base.model).__name__ == timm_class]
    names = {name for base in bases for name in _split_qkv(base.timm_state_dict())}
    for row in table:
        with pytest.raises(UserError, match=r"expected one counterpart .* got \[\]"):
            map_names(names, {timms: theirs for timms, theirs in table.items() if timms != row})


def test_vit_without_norm_has_its_features_before_an_identity_norm():
    base, size = random_base("vit")
    base.norm = nn.Identity()
    native = to_transformers(base, size)
    assert native.config.features == "hidden_states"
    assert torch.equal(native.layernorm.weight, torch.ones(64)) and torch.equal(native.layernorm.bias, torch.zeros(64))
    assert from_transformers(native, base).keys() == {*base.timm_state_dict(), "norm.weight", "norm.bias"}


@pytest.mark.parametrize(
    ("backbone", "kwargs"),
    [
        ("vit", {"init_values": 0.1}),
        ("vit", {"reg_tokens": 2}),
        ("vit", {"proj_bias": False}),
        ("vit", {"act_layer": "quick_gelu"}),
        ("convnext", {"use_grn": True}),
        ("resnet with basic blocks", {"stem_type": "deep", "stem_width": 32}),
    ],
)
def test_variants_that_transformers_computes_differently_are_not_converted(backbone, kwargs):
    assert to_transformers(*random_base(backbone, **kwargs)) is None


@pytest.mark.parametrize("name", ["extra.weight", "blocks.0.ls1.gamma", "blocks.x.norm1.weight", "norms.weight", "blocks.0"])
def test_unknown_name_is_refused(name):
    with pytest.raises(UserError, match=rf"expected one counterpart for the weight '{name}' .*got \[\]"):
        map_names(["norm.weight", name], ARCHITECTURES["VisionTransformer"].names)


def test_unknown_weight_of_transformers_is_refused():
    base, size = random_base("vit")
    native = to_transformers(base, size)
    native.extra = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"expected one counterpart for the weight 'extra\.weight'"):
        from_transformers(native, base)


@pytest.mark.parametrize("table", [{"norm": "layernorm", "head": "layernorm"}, {"norm": "a", "norm.weight": "b", "head": "c"}])
def test_name_is_not_mapped_twice(table):
    with pytest.raises(UserError, match="expected one counterpart"):
        map_names(["norm.weight", "head.weight"], table)


def test_weights_of_another_architecture_are_refused():
    base, size = random_base("vit")
    with pytest.raises(UserError, match="expected a ResNetModel or a timm model for the backbone ResNet, got a ViTModel"):
        from_transformers(to_transformers(base, size), random_base("resnet with basic blocks")[0])
    with pytest.raises(UserError, match="expected a timm model for the backbone MetaFormer"):
        from_transformers(to_transformers(base, size), Backbone("poolformer_s12", 64, {}))
