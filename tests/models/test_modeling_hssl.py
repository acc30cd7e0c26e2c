import copy

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeCopyMode, FakeTensorMode
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from hssl_hf import HSSLConfig, HSSLForPreTraining, HSSLModel
from hssl_hf.auxiliary import BLOCKS
from hssl_hf.engine.optim import build_optimizer, clip_per_parameter
from tests.conftest import checkpointing, tiny_config, tiny_model, tiny_views


def step(model, views, **arguments):
    optimizer = torch.optim.SGD(model.student.parameters(), lr=0.1)
    model.zero_grad()
    model(**views, **arguments).loss.backward()
    optimizer.step()
    model.update_teacher(0.9)


def test_teacher_starts_equal_and_gets_no_gradient():
    model = tiny_model()
    student = dict(model.student.named_parameters())
    assert all(torch.equal(p, student[name]) for name, p in model.teacher.named_parameters())
    model(**tiny_views()).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())


@pytest.mark.parametrize("objective", ["dino", "ibot", "moco_v3"])
@pytest.mark.parametrize("auxiliary", [None, *BLOCKS])
def test_every_student_parameter_moves_and_the_teacher_follows(objective, auxiliary):
    arrows = {} if auxiliary else {"cls_supervision": ["base->base"]}
    model = tiny_model(objective=objective, auxiliary=auxiliary, drop_path_rate=0.0, **arrows)
    before = {name: p.clone() for name, p in model.named_parameters()}
    for seed in range(2):
        step(model, tiny_views(seed, local=0 if objective == "moco_v3" else 2, grid=4 if objective == "ibot" else None))
    unchanged = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert not unchanged


def test_head_reaches_the_base_through_its_features_but_not_through_its_class_token():
    """HSSL with a pooled head: A->A alone trains the base, except its class token and its final norm."""
    model = tiny_model(objective="dino", cls_supervision=["auxiliary->auxiliary"])
    model(**tiny_views(grid=None)).loss.backward()
    idle = {name for name, p in model.student.base.named_parameters() if p.grad is None or p.grad.abs().sum() == 0}
    assert {"norm.weight", "norm.bias"} <= idle
    assert not {n for n in idle if not n.startswith(("norm.", "model.cls_token")) and "bias" not in n}


@pytest.mark.parametrize("backbone", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224", "poolformer_s12"])
def test_other_bases_take_every_kind_of_head(backbone):
    kwargs = {"swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1)}, "convnext_atto": {"depths": (1, 1, 1, 1)}}
    model = tiny_model(
        backbone=backbone, backbone_kwargs=kwargs.get(backbone), image_size=64, objective="dino",
        auxiliary="resnet", auxiliary_depth=1, auxiliary_hidden_size=32,
    )  # fmt: skip
    output = model(**tiny_views(local=2, size=64, grid=None))
    output.loss.backward()
    assert output.loss.isfinite() and all(p.grad is not None for p in model.student.parameters())


@pytest.mark.parametrize("objective", ["dino", "ibot", "moco_v3"])
@pytest.mark.parametrize("auxiliary", ["swin", "resnet"])
def test_saved_and_loaded_it_continues_identically(tmp_path, objective, auxiliary):
    views = tiny_views(local=0, grid=4 if objective == "ibot" else None)
    model = tiny_model(objective=objective, auxiliary=auxiliary)
    step(model, views)
    model.save_pretrained(tmp_path)
    loaded, info = HSSLForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.state_dict().keys() == loaded.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert not any(p.requires_grad for p in loaded.teacher.parameters())
    assert all(p.requires_grad for p in loaded.student.parameters())
    model.train(), loaded.train()
    outputs = []
    for each in (model, loaded):
        torch.manual_seed(3)
        step(each, views)
        torch.manual_seed(4)
        outputs.append(each(**views).loss)
    assert torch.equal(*outputs)


@pytest.mark.parametrize("backbone", ["swin_tiny_patch4_window7_224", "resnet18"])
def test_non_persistent_buffers_are_restored(tmp_path, backbone):
    """timm's Swin keeps masks and indices in buffers that are not saved."""
    kwargs = {"depths": (1, 2, 1, 1)} if "swin" in backbone else None
    model = tiny_model(backbone=backbone, backbone_kwargs=kwargs, image_size=64, objective="dino", auxiliary="resnet").eval()
    model.save_pretrained(tmp_path)
    loaded = HSSLForPreTraining.from_pretrained(tmp_path).eval()
    pixels = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(loaded.encode(pixels).cls, model.encode(pixels).cls, atol=0, rtol=0)


def test_a_checkpoint_without_teacher_gets_the_student_as_its_teacher(tmp_path):
    from safetensors.torch import load_file, save_file

    model = tiny_model()
    model.save_pretrained(tmp_path)
    lost = ("teacher.", "student.base.model.pos_embed", "student.heads.prototypes")
    state = {k: v for k, v in load_file(tmp_path / "model.safetensors").items() if not k.startswith(lost)}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = HSSLForPreTraining.from_pretrained(tmp_path)
    student = dict(loaded.student.named_parameters())
    assert all(torch.equal(p, student[name]) and not p.requires_grad for name, p in loaded.teacher.named_parameters())
    assert student["base.model.pos_embed"].std().item() == pytest.approx(0.02, rel=0.2), (
        "what is missing is drawn as for a new model"
    )


def test_auto_classes_know_the_model(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), HSSLConfig)
    assert isinstance(AutoModelForPreTraining.from_pretrained(tmp_path), HSSLForPreTraining)
    assert isinstance(AutoModel.from_pretrained(tmp_path), HSSLModel)
    assert isinstance(AutoModelForPreTraining.from_config(tiny_config()), HSSLForPreTraining)


def test_nothing_is_left_uninitialized():
    """Every parameter is filled by its own module, never left as the memory was; built twice from a seed it is the same."""
    a, b = tiny_model(seed=5), tiny_model(seed=5)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert all(value.isfinite().all() and value.abs().max() < 10 for value in a.state_dict().values())


@pytest.mark.parametrize("backbone", ["resnet18", "convnext_atto"])
def test_timms_own_initialization_survives(backbone):
    torch.manual_seed(0)
    model = tiny_model(backbone=backbone, backbone_kwargs=None, image_size=64, objective="dino", auxiliary="resnet")
    name = "conv1.weight" if backbone == "resnet18" else "stem.0.weight"
    import timm

    plain = timm.create_model(backbone, num_classes=0)
    spread = model.student.base.model.get_parameter(name).std() / plain.get_parameter(name).std()
    assert spread.item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("objective", "spread"), [("dino", 0.02), ("ibot", 0.02), ("moco_v3", 1e-6)], ids=["dino", "ibot", "moco_v3"]
)
@pytest.mark.parametrize("auxiliary", [None, "vit"])
def test_initial_values_are_those_of_the_originals(objective, spread, auxiliary):
    """Class token, positions, mask token, linear layers and norms of the base; the teacher starts as the student."""
    arrows = {"cls_supervision": ["base->base"]} if auxiliary is None else {}
    kwargs = {"patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3}
    model = tiny_model(objective=objective, auxiliary=auxiliary, backbone_kwargs=kwargs, **arrows)
    base = model.student.base.model
    assert base.cls_token.std().item() == pytest.approx(spread, rel=0.15)
    assert base.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert (
        base.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.02) and not base.blocks[0].attn.qkv.bias.any()
    )
    assert torch.equal(model.student.base.norm.weight, torch.ones(192)) and not model.student.base.norm.bias.any()
    if objective == "ibot":
        assert not model.student.base.mask_token.any()
    if objective != "moco_v3":
        assert model.student.heads.projections["base"][0].weight.std().item() == pytest.approx(0.02, rel=0.05)
    student = model.student.state_dict()
    assert all(torch.equal(value, student[name]) for name, value in model.teacher.state_dict().items())


def test_backbone_does_not_depend_on_the_head():
    """Two variants of a comparison start from the same base, with the same projection of it."""
    plain = tiny_model(seed=1, auxiliary=None, cls_supervision=["base->base"])
    models = [tiny_model(seed=1, auxiliary=family) for family in BLOCKS]
    for model in models:
        for name, value in plain.student.base.state_dict().items():
            assert torch.equal(value, model.student.base.state_dict()[name]), name
        for module in ("projections.base", "prototypes"):
            pair = [each.student.heads.get_submodule(module).state_dict() for each in (plain, model)]
            assert all(torch.equal(pair[0][name], pair[1][name]) for name in pair[0]), module
    other = tiny_model(seed=2)
    assert not torch.equal(other.student.base.model.pos_embed, plain.student.base.model.pos_embed)


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for enabled in (False, True):
        model = tiny_model(drop_path_rate=0.2).train()
        if enabled:
            checkpointing(model, "enable")()
            assert model.student.base.model.grad_checkpointing and model.student.auxiliary.grad_checkpointing
        torch.manual_seed(0)
        model(**tiny_views()).loss.backward()
        gradients.append([p.grad for p in model.student.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize("objective", ["dino", "ibot", "moco_v3"])
def test_bf16_stays_near_fp32(objective):
    model = tiny_model(objective=objective, drop_path_rate=0.0)
    views = tiny_views(local=0, grid=4 if objective == "ibot" else None)
    fp32 = model(**views).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bf16 = model(**views).loss
    assert bf16.dtype == torch.float32
    torch.testing.assert_close(bf16, fp32, rtol=0.03, atol=0.03)


def test_teacher_has_neither_masks_nor_drop_path():
    model, views = tiny_model(drop_path_rate=0.9).train(), tiny_views()
    assert model.teacher.base.mask_token is None
    first, second = (model.teacher(views["pixel_values"]) for _ in range(2))
    assert torch.equal(first.base.cls, second.base.cls)
    assert not torch.equal(*(model.student(views["pixel_values"]).base.cls for _ in range(2)))


def test_targets_come_from_the_teacher_and_unmasked_images():
    model, views, seen = tiny_model(), tiny_views(), {}
    with torch.no_grad():
        model.teacher.base.model.pos_embed.add_(1.0)

    model.objective.register_forward_pre_hook(lambda _, arguments: seen.update(vars(arguments[0])))
    model(**views)
    expected = model.teacher(views["pixel_values"])
    assert torch.equal(seen["teacher"].base.patches, expected.base.patches)
    assert torch.equal(seen["teacher"].auxiliary.cls, expected.auxiliary.cls)
    assert not seen["teacher"].base.cls.requires_grad and seen["student"].base.cls.requires_grad


def test_discrepancy_is_reported_only_with_a_head():
    assert tiny_model()(**tiny_views()).discrepancy > 0
    plain = tiny_model(auxiliary=None, cls_supervision=["base->base"])(**tiny_views())
    assert plain.discrepancy is None and set(plain.losses) == {"cls_base_to_base", "patch_base_to_base"}
    watched = {"teacher_entropy_base", "teacher_spread_base", "student_entropy_base", "agreement_base_to_base"}
    assert set(plain.metrics) == watched


def test_images_do_not_mix():
    """Permuting the images of a batch leaves loss and gradients unchanged."""
    model, views = tiny_model(drop_path_rate=0.0), tiny_views()
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(**{k: v[:, order] for k, v in views.items()}).loss, model(**views).loss)


def test_accumulated_halves_equal_the_full_batch():
    """Two halves of a batch, accumulated, give the gradients and centers of the full batch; the center moves once."""
    full, halves = tiny_model(drop_path_rate=0.0), tiny_model(drop_path_rate=0.0)
    views = tiny_views(images=6)
    full(**views).loss.backward()
    for half in (slice(0, 3), slice(3, 6)):
        (halves(**{k: v[:, half] for k, v in views.items()}).loss / 2).backward()
    for a, b in zip(full.student.parameters(), halves.student.parameters(), strict=True):
        rounding = 1e-6 * max(1, 10 * b.grad.abs().max().item())
        torch.testing.assert_close(a.grad, b.grad, atol=rounding, rtol=1e-4)
    full.update_teacher(0.9), halves.update_teacher(0.9)
    for a, b in zip(full.objective.buffers(), halves.objective.buffers(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("objective", "changes"), [("ibot", {}), ("dino", {}), ("moco_v3", {}), ("moco_v3", {"queue_size": 16})]
)
def test_nothing_in_a_step_waits_for_the_device(objective, changes):
    """Fake tensors have no values: a step that needed one would fail. Clipping, optimizer and teacher included."""
    views = tiny_views(local=0 if objective == "moco_v3" else 2, grid=4 if objective == "ibot" else None)
    if objective == "ibot":
        views["mask_indices"] = views["bool_masked_pos"].flatten().nonzero().flatten()
    mode, model = FakeTensorMode(), tiny_model(objective=objective, drop_path_rate=0.0, **changes).train()
    with FakeCopyMode(mode):
        model, views = copy.deepcopy(model), copy.deepcopy(views)
    with mode:
        optimizer = build_optimizer(model.student, (0.9, 0.999))
        model(**views).loss.backward()
        clip_per_parameter([p.grad for p in model.student.parameters() if p.grad is not None], 3.0)
        optimizer.step()
        model.update_teacher(0.9)
        if objective == "ibot":
            with pytest.raises(DynamicOutputShapeException):
                model(**{**views, "mask_indices": None})
