"""What is trained beside the base: one head, several, or a second network; and which initial values they share."""

import pytest
import torch

from hssl_hf import HSSLConfig, HSSLForPreTraining
from tests.conftest import tiny_config, tiny_model, tiny_views

PARALLEL = {"auxiliary": "convnext_atto", "auxiliary_connection": "parallel", "objective": "dino", "image_size": 64}
VARIANTS = {
    "several heads": {"auxiliary": ["convnext", "vit"]},
    "three heads on dino": {"auxiliary": ["convnext", "resmlp", "swin"], "objective": "dino"},
    "several heads on moco": {"auxiliary": ["resnet", "poolformer"], "objective": "moco_v3"},
    "mixer alone": {"auxiliary_sublayers": ["token_mixer"]},
    "mlp alone": {"auxiliary_sublayers": ["mlp"], "auxiliary": "swin"},
    "first shortcut kept": {"auxiliary_first_shortcut": True},
    "deep to shallow": {
        "objective": "dino",
        "auxiliary": None,
        "shallow_block": 1,
        "cls_supervision": ["base->base", "base->shallow"],
    },
    "shared projection": {"shared_projection": True},
    "patch level": {"patch_supervision": ["auxiliary->base", "auxiliary->auxiliary"]},
    "patch level of two": {"auxiliary": ["vit", "resmlp"], "patch_supervision": ["auxiliary->base", "auxiliary->auxiliary"]},
    "patch level beside a network": {
        "auxiliary": "vit_tiny_patch16_224",
        "auxiliary_connection": "parallel",
        "backbone_kwargs": {"patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 2},
        "patch_supervision": ["auxiliary->base", "auxiliary->auxiliary"],
    },
    "A->A": {"cls_supervision": ["auxiliary->auxiliary"]},
    "B->B": {"cls_supervision": ["base->base"], "auxiliary": None},
    "A->A, B->B": {"cls_supervision": ["auxiliary->auxiliary", "base->base"]},
    "A->B, B->B": {"cls_supervision": ["auxiliary->base", "base->base", "auxiliary->auxiliary"]},
    "a network beside the base": PARALLEL,
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_the_ablations_trains_all_its_parameters(variant):
    """Two steps: every trainable parameter moves, but those that A->A alone cannot reach."""
    changes = {"drop_path_rate": 0.0, **VARIANTS[variant]}
    model = tiny_model(**changes).train()
    size = changes.get("image_size", 32)
    local = 0 if changes.get("objective") == "moco_v3" else 2
    grid = model.student.base.grid[0] if model.config.objective == "ibot" else None
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.student.parameters(), lr=0.01)
    for seed in range(2):
        output = model(**tiny_views(seed, local=local, size=size, grid=grid))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_teacher(0.9)
    assert output.loss.isfinite() and (output.discrepancy is None or output.discrepancy > 0)
    assert not [name for name, p in model.named_parameters() if torch.equal(p, before[name])]


@pytest.mark.parametrize("variant", ["several heads", "a network beside the base"])
def test_it_is_restored_from_a_checkpoint_with_all_its_modules(tmp_path, variant):
    model = tiny_model(**VARIANTS[variant]).eval()
    model.save_pretrained(tmp_path)
    again, info = HSSLForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and again.config.families == model.config.families
    views = tiny_views(local=0, size=model.config.image_size, grid=4 if variant == "several heads" else None)
    assert torch.equal(again.eval()(**views).loss, model(**views).loss)


def test_outputs_of_several_heads_are_those_of_each_concatenated():
    """Equations 9 and 10: concatenated along the channels, at both levels; the first head starts as it would alone."""
    pair, single = tiny_model(auxiliary=["convnext", "vit"]).eval(), tiny_model(auxiliary="convnext").eval()
    features = torch.randn(2, 4, 4, 64)
    first, second = (head(features) for head in pair.student.auxiliary.heads.values())
    together = pair.student.auxiliary(features)
    assert torch.equal(together.cls, torch.cat([first.cls, second.cls], -1))
    assert torch.equal(together.patches, torch.cat([first.patches, second.patches], -1))
    assert pair.student.auxiliary(features, patches=False).patches is None
    alone = single.student.auxiliary.state_dict()
    assert all(torch.equal(value, alone[name]) for name, value in pair.student.auxiliary.heads["convnext"].state_dict().items())
    assert pair.student.heads.projections["auxiliary"][0].in_features == 128


def test_a_network_beside_the_base_sees_the_image_and_not_the_base():
    model = tiny_model(**PARALLEL).eval()
    pixels = torch.randn(1, 2, 3, 64, 64)
    before = model.student(pixels)
    with torch.no_grad():
        model.student.base.model.patch_embed.proj.weight.add_(1.0)
    after = model.student(pixels)
    assert torch.equal(before.auxiliary.cls, after.auxiliary.cls) and not torch.equal(before.base.cls, after.base.cls)


def test_positions_and_patch_embedding_of_moco_v3_are_frozen():
    model = tiny_model(objective="moco_v3", sincos_position_embeddings=True, freeze_patch_embed=True)
    base = model.student.base.model
    assert not base.pos_embed.requires_grad and not any(p.requires_grad for p in base.patch_embed.parameters())
    assert base.pos_embed[0, 1:].square().sum(-1).allclose(torch.tensor(32.0)), "sines and cosines of 16 frequencies per axis"
    assert base.cls_token.requires_grad
    model(**tiny_views(local=0, grid=None)).loss.backward()
    assert base.pos_embed.grad is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auxiliary": ["vit", "vit"]}, "without repetitions"),
        ({"auxiliary": []}, "a list of 1 to 6 values"),
        ({"auxiliary": ["vit", "convnet"]}, "expected one of 'convnext', .*, got 'convnet'"),
        ({"auxiliary": ["vit", "swin"], "auxiliary_connection": "parallel"}, "the name of one timm model"),
        ({"auxiliary_sublayers": ["mixr"]}, r"auxiliary_sublayers\[0\]: expected"),
        ({"auxiliary_sublayers": []}, "auxiliary_sublayers: expected"),
        ({"queue_size": 64}, "only moco_v3 has a queue"),
    ],
)
def test_invalid_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auxiliary": ["vit", "swin"], "shared_projection": True}, "branches of one width"),
        ({**PARALLEL, "auxiliary": "convnext_ato"}, "Did you mean convnext_atto"),
        ({**PARALLEL, "objective": "ibot", "patch_supervision": ["auxiliary->base", "auxiliary->auxiliary"]}, "needs one grid"),
        (
            {
                "backbone": "resnet18",
                "backbone_kwargs": None,
                "objective": "dino",
                "image_size": 64,
                "sincos_position_embeddings": True,
            },
            "for vision transformers",
        ),
    ],
)
def test_modules_that_do_not_fit_each_other_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(**changes)


def test_the_default_is_the_released_variant():
    config = HSSLConfig()
    assert (config.auxiliary, config.auxiliary_connection, config.auxiliary_sublayers) == (
        "convnext",
        "serial",
        ("token_mixer", "mlp"),
    )
    assert (config.auxiliary_depth, config.auxiliary_first_shortcut, config.families) == (3, False, ("convnext",))


def test_an_early_block_learns_from_the_last_one_through_its_class_token():
    """Table 19: the class token behind block 1 has a norm and a projection of its own, and its loss reaches no later block."""
    arrows = ["base->base", "base->shallow"]
    model = tiny_model(objective="dino", auxiliary=None, shallow_block=1, cls_supervision=arrows, drop_path_rate=0.0)
    base, views = model.student.base, tiny_views(local=2, grid=None)
    branches = model.student(views["pixel_values"])
    hidden = list(base.hidden_states(views["pixel_values"].flatten(0, 1)))
    assert torch.equal(branches.shallow.cls.flatten(0, 1), torch.nn.functional.layer_norm(hidden[1][:, 0], (64,), eps=1e-6))
    torch.testing.assert_close(branches.base.cls.flatten(0, 1), base(views["pixel_values"].flatten(0, 1))[0].cls)
    output = model(**views)
    assert output.losses.keys() == {"cls_base_to_base", "cls_base_to_shallow"} and output.discrepancy is None
    output.losses["cls_base_to_shallow"].backward()
    assert base.model.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    assert base.model.blocks[1].attn.qkv.weight.grad is None
    assert model.student.heads.projections["shallow"][0].weight.grad.abs().sum() > 0


def test_of_visible_patches_only_the_student_sees_no_other():
    """Pixels of masked patches change the teacher's output alone; without a mask both see all."""
    model = tiny_model(objective="moco_v3", auxiliary=None, visible_patches_only=True, drop_path_rate=0.0).eval()
    pixels, mask = tiny_views(local=0, grid=None)["pixel_values"], torch.zeros(2, 4, 4, 4, dtype=torch.bool)
    mask[..., 1:3, :] = True
    changed = pixels.clone()
    changed[..., 8:24, :] += 1
    seen = model.student(pixels, mask).base.cls
    assert torch.equal(seen, model.student(changed, mask).base.cls) and seen.shape == (2, 4, 64)
    assert torch.equal(seen, model.student(pixels, mask, mask.flatten().nonzero().flatten()).base.cls)
    full = model.student(pixels).base.cls
    assert torch.equal(full, model.teacher(pixels).base.cls) and not torch.allclose(full, seen)
    assert model.equal_mask_counts and model.masked_views is None
    losses = [model(views, bool_masked_pos=mask).loss for views in (pixels, changed)]
    assert losses[0] != losses[1], "the keys are of full views"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shallow_block": 2}, "shallow_block=2: expected one before the last block of a vision transformer, got 2 blocks"),
        ({"shallow_block": 1, "backbone": "resnet18", "backbone_kwargs": None}, "got 0 blocks"),
    ],
)
def test_a_shallow_block_that_is_not_there_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(objective="dino", auxiliary=None, **changes)
