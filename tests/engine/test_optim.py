import pytest
import torch

from hssl_hf.config.recipe import load_recipe
from hssl_hf.config.recipe_files import recipes
from hssl_hf.engine.optim import (
    CLIPS,
    build_optimizer,
    clip_global_norm,
    clip_per_parameter,
    drop_gradients,
    parameter_groups,
    set_rates,
)
from tests.conftest import tiny_model, tiny_siamese, tiny_views


def test_groups_partition_the_student():
    model = tiny_model(objective="ibot", norm_last_layer=False, auxiliary="swin")
    groups = parameter_groups(model.student)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(list(model.student.parameters()))


def test_decay_spares_biases_and_norms_alone():
    """DINO and iBOT: position table, class token, mask token and prototypes decay too."""
    model = tiny_model(norm_last_layer=False, auxiliary="swin")
    decayed = {id(p) for p in parameter_groups(model.student)[0]["params"]}
    names = {name for name, p in model.student.named_parameters() if id(p) in decayed}
    assert {"base.model.pos_embed", "base.model.cls_token", "base.mask_token", "heads.prototypes.weight_g"} <= names
    assert not {name for name in names if name.endswith(".bias") or "norm" in name}
    assert {n for n, p in model.student.named_parameters() if id(p) not in decayed and p.ndim > 1} == set()


def test_every_tensor_is_clipped_by_its_own_norm():
    """Not the global norm: a small gradient beside a large one stays as it is."""
    small, large = torch.full((4,), 0.1), torch.full((4,), 5.0)
    norms = clip_per_parameter([small, large], largest=3.0)
    torch.testing.assert_close(norms, torch.tensor([0.2, 10.0]))
    torch.testing.assert_close(small, torch.full((4,), 0.1))
    torch.testing.assert_close(large, torch.full((4,), 5.0) * 3 / (10 + 1e-6))


def test_all_tensors_are_clipped_by_their_common_norm():
    small, large = torch.full((4,), 0.3), torch.full((4,), 0.4)
    norm = clip_global_norm([small, large], largest=0.5)
    torch.testing.assert_close(norm, torch.tensor([1.0]))
    torch.testing.assert_close(small, torch.full((4,), 0.15), rtol=1e-4, atol=0)
    torch.testing.assert_close(large, torch.full((4,), 0.2), rtol=1e-4, atol=0)
    clip_global_norm([small, large], largest=0.5001)
    torch.testing.assert_close(large, torch.full((4,), 0.2), rtol=1e-4, atol=0)


def test_siamese_tokens_decay_and_frozen_tables_take_no_part():
    """cls_token and mask_token decay; positions and the frozen patch embedding are in no group."""
    model = tiny_siamese()
    groups = parameter_groups(model.student)
    names = [{n for n, p in model.student.named_parameters() if id(p) in {id(q) for q in g["params"]}} for g in groups]
    assert {"base.model.cls_token", "decoder.mask_token"} <= names[0]
    assert not any("pos_embed" in n or "patch_embed" in n for n in names[0] | names[1])
    assert "decoder.blocks.0.norm1.bn.weight" in names[1] and not names[0] & names[1]


def test_dropped_gradients_freeze_against_decay_too():
    model = tiny_model(norm_last_layer=False)
    optimizer = build_optimizer(model.student, (0.9, 0.999))
    set_rates(optimizer, learning_rate=0.1, weight_decay=0.5)
    before = [p.clone() for p in model.freezable_parameters()["prototypes"]]
    assert len(before) == 2
    model(**tiny_views()).loss.backward()
    drop_gradients(model.freezable_parameters()["prototypes"])
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.freezable_parameters()["prototypes"], strict=True))
    optimizer.zero_grad()
    model(**tiny_views()).loss.backward()
    optimizer.step()
    assert not torch.equal(before[0], model.freezable_parameters()["prototypes"][0])


def test_groups_are_frozen_by_name():
    """Prototypes and base are groups of their own, which are frozen by name; every parameter is in one group."""
    model = tiny_model(norm_last_layer=False)
    optimizer = build_optimizer(model.student, (0.9, 0.999), model.freezable_parameters())
    groups = optimizer.param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(model.student.parameters()))
    (frozen,) = [group for group in groups if group["name"] == "prototypes"]
    assert [id(p) for p in frozen["params"]] == [id(p) for p in model.freezable_parameters()["prototypes"]]
    base = {id(p) for group in groups if group["name"] == "base" for p in group["params"]}
    assert base == {id(p) for p in model.student.base.parameters()}
    set_rates(optimizer, 0.1, 0.5, frozen={"prototypes"})
    assert (frozen["lr"], frozen["weight_decay"]) == (0.0, 0.0)
    assert {group["lr"] for group in groups if group["name"] != "prototypes"} == {0.1}
    set_rates(optimizer, 0.1, 0.5)
    assert (frozen["lr"], frozen["weight_decay"]) == (0.1, 0.5)


def test_rates_reach_their_groups():
    optimizer = build_optimizer(torch.nn.Linear(2, 2), (0.9, 0.95))
    set_rates(optimizer, 0.1, 0.3)
    assert [(g["lr"], g["weight_decay"], g["betas"]) for g in optimizer.param_groups] == [
        (0.1, 0.3, (0.9, 0.95)),
        (0.1, 0.0, (0.9, 0.95)),
    ]
    assert optimizer.param_groups[0]["params"][0].ndim == 2 and optimizer.param_groups[1]["params"][0].ndim == 1


def test_fused_adamw_equals_the_formula():
    """One step by hand: p (1 - lr wd) - lr g/|g| after bias correction (arXiv 1711.05101, algorithm 2)."""
    layer = torch.nn.Linear(1, 1, bias=False)
    start = layer.weight.item()
    optimizer = build_optimizer(layer, (0.9, 0.999))
    set_rates(optimizer, 0.01, 0.1)
    layer.weight.grad = torch.full((1, 1), 2.0)
    optimizer.step()
    assert layer.weight.item() == pytest.approx(start * (1 - 0.001) - 0.01, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "first", "second"), [("per_parameter", 1 / 5, 1.0), ("global", 1 / 25.25**0.5, 1 / 25.25**0.5)]
)
def test_the_name_of_a_clip_rule_chooses_it(name, first, second):
    """Gradients of length 5 and .5, at most 1: each by its own length, or both by their common one, sqrt(25.25)."""
    gradients = [torch.tensor([3.0, 4.0]), torch.tensor([0.5])]
    CLIPS[name](gradients, 1.0)
    torch.testing.assert_close(gradients, [torch.tensor([3.0, 4.0]) * first, torch.tensor([0.5]) * second])


@pytest.mark.parametrize(
    ("recipe", "largest", "rule"),
    [
        ("dino_vits16", 3.0, "per_parameter"),
        ("ibot_vits16", 3.0, "per_parameter"),
        ("hssl_ibot_vitb16", 0.3, "per_parameter"),
        ("siamese_im_vitb16_400", 1.0, "global"),
        ("moco_v3_vits16", None, None),
        ("mae_vits16", None, None),
    ],
)
def test_recipes_clip_as_the_published_code_of_their_method(recipe, largest, rule):
    optim = load_recipe(recipes()[recipe]).optim
    assert optim.max_grad_norm == largest and rule in (None, optim.grad_clip)
