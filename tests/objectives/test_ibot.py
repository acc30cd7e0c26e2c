import numpy as np
import pytest
import torch

from hssl_hf.modules.projection_heads import prototype_logits
from hssl_hf.modules.tokens import Branches, Tokens
from hssl_hf.objectives.ibot import IBOT
from hssl_hf.objectives.supervision import ObjectiveInputs
from tests.conftest import tiny_config, tiny_model, tiny_views
from tests.objectives.test_dino import Bare, naive_cross_view, teacher_temperature


def set_centers(objective, arrays, prefix, cls, patch):
    objective.cls_centers[cls].value.copy_(torch.from_numpy(arrays[f"{prefix}/center_after"].ravel()))
    objective.patch_centers[patch].value.copy_(torch.from_numpy(arrays[f"{prefix}/center2_after"].ravel()))


@pytest.mark.parametrize("call", [0, 1])
def test_equals_official_ibot(golden, call):
    """Official iBOT loss: 32 prototypes, 2 global and 3 local views of 4 images of 4×4 patches; one mask is empty."""
    arrays = golden("base_methods")
    objective = IBOT(tiny_config(auxiliary=None, cls_supervision=["base->base"], num_prototypes=32))
    if call == 1:
        set_centers(objective, arrays, "ibot/0", "base", "base")
    load = lambda name: torch.from_numpy(arrays[f"ibot/{call}/{name}"])  # noqa: E731
    cls, patch, local = (load(f"student_{n}").requires_grad_() for n in ("cls", "patch")), None, None
    cls, patch = cls
    local = load("local_cls").requires_grad_()
    student = Branches(Tokens(cls.view(2, 4, 32), patch.view(2, 4, 4, 4, 32)))
    teacher = Branches(Tokens(load("teacher_cls").view(2, 4, 32), load("teacher_patch").view(2, 4, 4, 4, 32)))
    views = (student, teacher, Bare(32), Bare(32), Branches(Tokens(local.view(3, 4, 32))))
    temperature = teacher_temperature(arrays, int(load("epoch")))
    mask = torch.from_numpy(arrays["ibot/masks"])
    output = objective(ObjectiveInputs(*views, bool_masked_pos=mask, teacher_temperature=temperature))
    np.testing.assert_allclose(output.losses["cls_base_to_base"].item(), load("loss_cls"), rtol=1e-5)
    np.testing.assert_allclose(output.losses["patch_base_to_base"].item(), load("loss_patch"), rtol=1e-5)
    np.testing.assert_allclose(output.loss.item(), load("loss"), rtol=1e-5)
    gradients = torch.autograd.grad(output.loss, [cls, patch, local])
    for gradient, name in zip(gradients, ("grad_cls", "grad_patch", "grad_local"), strict=True):
        np.testing.assert_allclose(gradient, load(name), atol=1e-6)
    objective.update()
    np.testing.assert_allclose(objective.cls_centers["base"].value, load("center_after").ravel(), atol=1e-6)
    np.testing.assert_allclose(objective.patch_centers["base"].value, load("center2_after").ravel(), atol=1e-6)


@pytest.mark.parametrize("call", [0, 1])
def test_equals_released_hssl(golden, call):
    """Released HSSL loss: the head teaches both class tokens, the base its own patches; 64 prototypes, 2 images, 3 locals."""
    arrays = golden("hssl_loss")
    objective = IBOT(tiny_config(num_prototypes=64))
    if call == 1:
        set_centers(objective, arrays, "hssl_loss/0", "auxiliary", "base")
    load = lambda name: torch.from_numpy(arrays[f"hssl_loss/{call}/{name}"])  # noqa: E731
    names = ["s_base_cls", "s_base_patch", "s_aux_cls", "l_base", "l_aux"]
    leaves = [load(name).requires_grad_() for name in names]
    base_cls, base_patch, aux_cls, local_base, local_aux = leaves
    student = Branches(Tokens(base_cls.view(2, 2, 64), base_patch.view(2, 2, 4, 4, 64)), Tokens(aux_cls.view(2, 2, 64)))
    local = Branches(Tokens(local_base.view(3, 2, 64)), Tokens(local_aux.view(3, 2, 64)))
    teacher = Branches(
        Tokens(torch.zeros(2, 2, 64), load("t_base_patch").view(2, 2, 4, 4, 64)), Tokens(load("t_aux_cls").view(2, 2, 64))
    )
    mask, temperature = torch.from_numpy(arrays["hssl_loss/masks"]), released_temperature(int(load("epoch")))
    inputs = ObjectiveInputs(student, teacher, Bare(64), Bare(64), local, mask, teacher_temperature=temperature)
    output = objective(inputs)
    ours = [
        output.losses[name].item() for name in ("cls_auxiliary_to_base", "patch_base_to_base", "cls_auxiliary_to_auxiliary")
    ]
    np.testing.assert_allclose([*ours, output.loss.item()], load("cls1_patch1_cls2_loss"), rtol=1e-5)
    for gradient, name in zip(torch.autograd.grad(output.loss, leaves), names, strict=True):
        np.testing.assert_allclose(gradient, load(f"grad_{name}"), atol=1e-6)
    objective.update()
    np.testing.assert_allclose(objective.cls_centers["auxiliary"].value, load("center_after").ravel(), atol=1e-6)
    np.testing.assert_allclose(objective.patch_centers["base"].value, load("center2_after").ravel(), atol=1e-6)


def released_temperature(epoch):
    return float(np.linspace(0.04, 0.07, 3)[min(epoch, 2)])


def test_masked_only_equals_projecting_every_token():
    """The loss and the center of the patches are those of an implementation that projects all tokens."""
    model = tiny_model(auxiliary=None, cls_supervision=["base->base"], drop_path_rate=0.0)
    views, objective = tiny_views(), model.objective
    torch.manual_seed(1)
    objective.cls_centers["base"].value.normal_(std=0.1)
    objective.patch_centers["base"].value.normal_(std=0.1)
    views["bool_masked_pos"][0, 1] = False
    output = model(**views, teacher_temperature=0.05)

    heads, teacher_heads = model.student.heads, model.teacher.heads
    student = model.student(views["pixel_values"], views["bool_masked_pos"]).base
    local, teacher = model.student(views["local_pixel_values"]).base, model.teacher(views["pixel_values"]).base
    score = lambda h, x: prototype_logits(h.project("base", x), h.prototypes())  # noqa: E731
    cls = torch.cat([score(heads, student.cls), score(heads, local.cls)]) / 0.1
    t_cls = torch.softmax((score(teacher_heads, teacher.cls) - objective.cls_centers["base"].value) / 0.05, -1)
    t_logits = score(teacher_heads, teacher.patches)
    t_patch = torch.softmax((t_logits - objective.patch_centers["base"].value) / 0.05, -1)
    entropy = -(t_patch * torch.log_softmax(score(heads, student.patches) / 0.1, -1)).sum(-1)
    bool_masked_pos = views["bool_masked_pos"]
    patch = ((entropy * bool_masked_pos).sum((-1, -2)) / bool_masked_pos.sum((-1, -2)).clamp(min=1)).mean()
    torch.testing.assert_close(output.loss, naive_cross_view(t_cls, cls) + patch)
    before = objective.patch_centers["base"].value.clone()
    objective.update()
    expected = 0.9 * before + 0.1 * t_logits.mean((0, 1, 2, 3))
    torch.testing.assert_close(objective.patch_centers["base"].value, expected)


def test_batch_without_any_mask_has_a_loss_and_gradients():
    model, views = tiny_model(), tiny_views()
    views["bool_masked_pos"][:] = False
    output = model(**views)
    output.loss.backward()
    assert output.losses["patch_base_to_base"] == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.student.parameters())


def test_patch_level_supervision_is_a_value():
    """HSSL, Table 18: the head's patches teach the patches of both branches."""
    model = tiny_model(patch_supervision=["auxiliary->base", "auxiliary->auxiliary"])
    losses = model(**tiny_views()).losses
    assert {n for n in losses if n.startswith("patch_")} == {"patch_auxiliary_to_base", "patch_auxiliary_to_auxiliary"}


def test_masks_are_required():
    views = tiny_views()
    del views["bool_masked_pos"]
    with pytest.raises(ValueError, match="needs bool_masked_pos"):
        tiny_model()(**views)
