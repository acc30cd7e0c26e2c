import numpy as np
import pytest
import torch
from torch import nn

from hssl_hf.modules.tokens import Branches, Tokens
from hssl_hf.objectives.dino import DINO, cross_view_loss
from hssl_hf.objectives.supervision import Center, ObjectiveInputs
from tests.conftest import tiny_config, tiny_model, tiny_views


class Bare(nn.Module):
    """Heads that pass logits through, so that an objective can be fed the logits of another implementation."""

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def prototypes(self):
        return torch.eye(self.count)

    def project(self, branch, tokens):
        return tokens

    def has(self, branch):
        return True


def naive_cross_view(targets, logits):
    terms = [
        -(t * torch.log_softmax(s, -1)).sum(-1).mean() for q, t in enumerate(targets) for v, s in enumerate(logits) if v != q
    ]
    return sum(terms) / len(terms)


def test_cross_view_loss_equals_the_double_loop():
    torch.manual_seed(0)
    targets, logits = torch.softmax(torch.randn(2, 5, 7), -1), torch.randn(6, 5, 7, requires_grad=True)
    ours, theirs = cross_view_loss(targets, logits), naive_cross_view(targets, logits)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))


@pytest.mark.parametrize("call", [0, 1])
def test_equals_official_dino(golden, call):
    """Official DINO loss: 32 prototypes, 2 global and 3 local views of 4 images, epochs 1 and 5, center carried over."""
    arrays = golden("base_methods")
    config = tiny_config(
        objective="dino", auxiliary=None, cls_supervision=["base->base"], num_prototypes=32, student_temperature=0.1
    )
    objective = DINO(config)
    if call == 1:
        objective.cls_centers["base"].value.copy_(torch.from_numpy(arrays["dino/0/center_after"][0]))
    load = lambda name: torch.from_numpy(arrays[f"dino/{call}/{name}"])  # noqa: E731
    student = load("student").view(5, 4, 32).requires_grad_()
    teacher = Branches(Tokens(load("teacher").view(2, 4, 32)))
    temperature = teacher_temperature(arrays, int(load("epoch")))
    views = (Branches(Tokens(student[:2])), teacher, Bare(32), Bare(32), Branches(Tokens(student[2:])))
    output = objective(ObjectiveInputs(*views, teacher_temperature=temperature))
    np.testing.assert_allclose(output.loss.item(), load("loss"), rtol=1e-5)
    (gradient,) = torch.autograd.grad(output.loss, student)
    np.testing.assert_allclose(gradient.view(20, 32), load("grad"), atol=1e-6)
    objective.update()
    np.testing.assert_allclose(objective.cls_centers["base"].value, load("center_after")[0], atol=1e-6)


def test_loss_and_center_written_out():
    """Equations 1-4 of DINO (arXiv 2104.14294): 2 global and 2 local views of 3 images, 5 prototypes, a center from before."""
    rng = np.random.default_rng(3)
    student, teacher, center = rng.normal(size=(4, 3, 5)), rng.normal(size=(2, 3, 5)), rng.normal(size=5)
    softmax = lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)  # noqa: E731
    pairs = [(q, v) for q in range(2) for v in range(4) if v != q]
    cross_entropies = [
        -(softmax((teacher[q, image] - center) / 0.04) * np.log(softmax(student[v, image] / 0.1))).sum()
        for q, v in pairs for image in range(3)
    ]  # fmt: skip
    config = tiny_config(objective="dino", auxiliary=None, cls_supervision=["base->base"], num_prototypes=5,
                         student_temperature=0.1, center_momentum=0.8)  # fmt: skip
    objective = DINO(config)
    objective.cls_centers["base"].value.copy_(torch.Tensor(center))
    views = [Branches(Tokens(torch.Tensor(outputs))) for outputs in (student[:2], teacher, student[2:])]
    inputs = ObjectiveInputs(views[0], views[1], Bare(5), Bare(5), views[2], teacher_temperature=0.04)
    assert objective(inputs).loss.item() == pytest.approx(np.mean(cross_entropies), rel=1e-5)
    objective.update()
    np.testing.assert_allclose(objective.cls_centers["base"].value, 0.8 * center + 0.2 * teacher.mean((0, 1)), rtol=1e-5)


def teacher_temperature(arrays, epoch):
    return float(arrays["ibot/temp_schedule"][epoch])


def test_center_moves_once_per_update_and_averages_the_collected_batches():
    center = Center(3, momentum=0.9)
    first, second = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 2.0, 1.0])
    center.collect(first)
    center.collect(second)
    assert torch.equal(center.value, torch.zeros(3)), "a center must not move while gradients accumulate"
    center.update()
    torch.testing.assert_close(center.value, torch.full((3,), 0.2))
    center.update()
    torch.testing.assert_close(center.value, torch.full((3,), 0.2))


@pytest.mark.parametrize(
    ("arrows", "terms"),
    [
        (["auxiliary->auxiliary"], {"cls_auxiliary_to_auxiliary"}),
        (["auxiliary->auxiliary", "base->base"], {"cls_auxiliary_to_auxiliary", "cls_base_to_base"}),
        (["auxiliary->auxiliary", "auxiliary->base"], {"cls_auxiliary_to_auxiliary", "cls_auxiliary_to_base"}),
    ],
)
@pytest.mark.parametrize("objective", ["dino", "ibot", "moco_v3"])
def test_variants_of_supervision_are_values(objective, arrows, terms):
    """HSSL, Table 14: A->A, A->A + B->B, A->A + A->B."""
    model = tiny_model(objective=objective, cls_supervision=arrows, patch_supervision=["base->base"] * (objective == "ibot"))
    output = model(**tiny_views(local=0 if objective == "moco_v3" else 2, grid=4 if objective == "ibot" else None))
    assert {name for name in output.losses if name.startswith("cls_")} == terms
    mean = torch.stack([output.losses[name] for name in terms]).mean()
    patch = output.losses.get("patch_base_to_base", torch.zeros(()))
    torch.testing.assert_close(output.loss, mean + patch)


def test_sum_reduction_adds_the_arrows():
    mean, total = (tiny_model(objective="dino", reduction=r)(**tiny_views(grid=None)).loss for r in ("mean", "sum"))
    torch.testing.assert_close(total, 2 * mean)


def test_shared_projection_uses_one_projection_for_both_branches():
    separate, shared = tiny_model(objective="dino"), tiny_model(objective="dino", shared_projection=True)
    assert set(separate.student.heads.projections) == {"base", "auxiliary"}
    assert set(shared.student.heads.projections) == {"shared"}
    assert shared(**tiny_views(grid=None)).loss.isfinite()
