"""Equations 1 to 11 of HSSL, written out in plain numpy, against what the package computes."""

import json

import numpy as np
import pytest
import torch

from hssl_hf import HeadSearchConfig, HeadSearchForPreTraining
from hssl_hf.evaluation.metrics import Discrepancy, SolvedIoU, SolvedSamples
from hssl_hf.experiments.head_search import rank
from hssl_hf.objectives.moco_v3 import MoCoV3
from tests.conftest import tiny_config, tiny_model, tiny_views

TEACHER_T, STUDENT_T = 0.05, 0.1


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    powers = np.exp((logits - logits.max(-1, keepdims=True)) / temperature)
    return powers / powers.sum(-1, keepdims=True)


def cross_entropy(teacher: np.ndarray, student: np.ndarray) -> float:
    """Equation 2, one term: minus the sum over K of z1 log z2, averaged over images and the two ordered pairs of views."""
    return np.mean([-(teacher[v] * np.log(student[1 - v])).sum(-1) for v in (0, 1)])


def logits_of(heads, branch: str, cls: torch.Tensor) -> np.ndarray:
    """(V, B, K) outputs of a branch: its projection, of length 1, times the prototypes' directions."""
    weight = heads.prototypes.weight_v.detach().numpy().astype(np.float64)
    directions = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    return heads.project(branch, cls).detach().numpy().astype(np.float64) @ directions.T


def two_terms(student, teacher, student_heads, teacher_heads, center: np.ndarray) -> tuple[float, float]:
    """L(z1^h, z2^b) and L(z1^h, z2^h) of equation 1."""
    target = softmax(logits_of(teacher_heads, "auxiliary", teacher.auxiliary.cls) - center, TEACHER_T)
    learners = {
        name: softmax(logits_of(student_heads, name, getattr(student, name).cls), STUDENT_T) for name in student._fields[:2]
    }
    return cross_entropy(target, learners["base"]), cross_entropy(target, learners["auxiliary"])


def run(model):
    """Output and tokens of student and teacher for two views without local crops."""
    views = tiny_views(local=0, grid=None)
    output = model(**views, teacher_temperature=TEACHER_T)
    with torch.no_grad():
        return output, model.student(views["pixel_values"]), model.teacher(views["pixel_values"])


def different_teacher(model):
    """Let the teacher differ from the student, as after some training."""
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model.eval()


@pytest.mark.parametrize("auxiliary", ["convnext", ["convnext", "vit"]], ids=["equations 1 and 2", "equation 10"])
def test_the_loss_is_the_sum_of_two_cross_entropies_of_which_the_released_code_takes_the_mean(auxiliary):
    values = {}
    for reduction in ("sum", "mean"):
        changes = {"auxiliary": auxiliary, "reduction": reduction, "student_temperature": STUDENT_T, "drop_path_rate": 0.0}
        model = different_teacher(tiny_model(objective="dino", **changes))
        center = np.linspace(-0.1, 0.1, 40)
        model.objective.cls_centers["auxiliary"].value.copy_(torch.from_numpy(center))
        output, student, teacher = run(model)
        terms = two_terms(student, teacher, model.student.heads, model.teacher.heads, center)
        values[reduction] = output.loss.item()
        assert output.losses["cls_auxiliary_to_base"].item() == pytest.approx(terms[0], rel=1e-4)
        assert output.losses["cls_auxiliary_to_auxiliary"].item() == pytest.approx(terms[1], rel=1e-4)
    assert values["sum"] == pytest.approx(sum(terms), rel=1e-4), "as printed"
    assert values["mean"] == pytest.approx(sum(terms) / 2, rel=1e-4), "as released, and the default"
    assert tiny_config().reduction == "mean"


def test_equations_3_and_4_count_what_the_head_solves_beyond_the_baseline():
    """N_s = |H ∩ (U - B1)|; sIoU = |B2 ∩ (U - B1) ∩ H ∩ (U - B1)| / |B2 ∩ (U - B1)|."""
    draw = np.random.default_rng(0)
    labels, base, baseline, head = draw.integers(0, 3, (4, 500))
    u = set(range(500))
    b2, b1, h = ({i for i in u if predicted[i] == labels[i]} for predicted in (base, baseline, head))
    inputs = {"baseline": baseline, "auxiliary": head, "references": labels}
    assert SolvedSamples(keep_in_memory=True).compute(**inputs)["N_s"] == len(h & (u - b1))
    expected = len(b2 & (u - b1) & h & (u - b1)) / len(b2 & (u - b1))
    assert SolvedIoU(keep_in_memory=True).compute(base=base, **inputs)["sIoU"] == expected


def divergence(base: np.ndarray, head: np.ndarray) -> float:
    """Equation 5: minus z_b transposed times log(z_h / z_b), averaged over images."""
    return np.mean(-(base * np.log(head / base)).sum(-1))


def test_equation_5_is_the_divergence_of_the_heads_distribution_from_the_bases():
    base, head = np.random.default_rng(0).normal(size=(2, 50, 8))
    metric = Discrepancy(keep_in_memory=True)
    for temperature in (1.0, 0.3):
        expected = divergence(softmax(base, temperature), softmax(head, temperature))
        assert metric.compute(predictions=base, references=head, temperature=temperature, center=False)["D"] == pytest.approx(
            expected, rel=1e-5
        )
        centered = [softmax(x - x.mean(0), temperature) for x in (base, head)]
        result = metric.compute(predictions=base, references=head, temperature=temperature)["D"]
        assert result == pytest.approx(divergence(*centered), rel=1e-5), "the default: each branch less its mean"


@pytest.fixture(scope="module")
def search():
    torch.manual_seed(0)
    names = ["convnext", "resmlp", "vit"]
    values = tiny_config(objective="dino", student_temperature=STUDENT_T, drop_path_rate=0.0, reduction="sum").to_diff_dict()
    values = {key: value for key, value in values.items() if key not in ("model_type", "transformers_version")}
    model = different_teacher(HeadSearchForPreTraining(HeadSearchConfig(**values, candidates=names)))
    return model, names, *run(model)


def test_equations_6_and_7_average_the_losses_of_all_candidates(search):
    model, names, output, student, teacher = search
    losses = []
    for name in names:
        heads = model.student.heads[name], model.teacher.heads[name]
        losses.append(sum(two_terms(student.pair(name), teacher.pair(name), *heads, np.zeros(40))))
    assert output.loss.item() == pytest.approx(sum(losses) / len(names), rel=1e-4)


def test_equation_8_chooses_the_candidate_with_the_largest_divergence(search, tmp_path):
    model, names, output, _, teacher = search
    divergences = {}
    for name in names:
        heads = model.teacher.heads[name]
        logits = [logits_of(heads, b, getattr(teacher.pair(name), b).cls).reshape(-1, 40) for b in ("base", "auxiliary")]
        divergences[name] = divergence(*(softmax(x - x.mean(0), TEACHER_T) for x in logits))
        assert output.metrics[f"discrepancy_{name}"].item() == pytest.approx(divergences[name], rel=1e-3)
    metrics = {key: value.item() for key, value in output.metrics.items()}
    (tmp_path / "log.jsonl").write_text("".join(json.dumps({"step": step, **metrics}) + "\n" for step in range(20)))
    assert rank(tmp_path)[0].family == max(divergences, key=divergences.get)


def test_equation_9_concatenates_heads_along_the_channels():
    model = tiny_model(auxiliary=["convnext", "vit"]).eval()
    features = torch.randn(2, 4, 4, 64)
    with torch.no_grad():
        parts = [head(features) for head in model.student.auxiliary.heads.values()]
        together = model.student.auxiliary(features)
    for level in ("cls", "patches"):
        expected = np.concatenate([getattr(part, level).numpy() for part in parts], axis=-1)
        np.testing.assert_allclose(getattr(together, level).numpy(), expected, atol=1e-6)


def test_equation_11_contrasts_with_a_queue_times_the_2t_of_moco_v3():
    """Printed is -log(exp(z2·z1 / T) / sum over the bank), alone and without 2T; MoCo's sum, and ours, has the positive too."""
    temperature = 0.2
    objective = MoCoV3(tiny_config(objective="moco_v3", queue_size=12, contrastive_temperature=temperature))
    draw = np.random.default_rng(0)
    queries, keys = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in draw.normal(size=(2, 4, 24)))
    queue = objective.queues["auxiliary"]
    bank = queue.keys.numpy().astype(np.float64)
    own, negatives = np.exp((queries * keys).sum(1) / temperature), np.exp(queries @ bank.T / temperature).sum(1)
    printed = -np.log(own / negatives)
    expected = np.log1p(np.exp(printed))
    tensors = [torch.from_numpy(x).float() for x in (queries, keys)]
    for image in range(4):
        loss = objective._contrast(*(x[image : image + 1] for x in tensors), queue).item()
        assert loss == pytest.approx(2 * temperature * expected[image], rel=1e-4)
    assert objective._contrast(*tensors, queue).item() == pytest.approx(2 * temperature * expected.mean(), rel=1e-4)


def test_equation_11_adds_the_term_of_each_view():
    """L = L(z1, z2') + L(z2, z1'), for one arrow."""
    model = tiny_model(objective="moco_v3", queue_size=12, cls_supervision=["base->base"], auxiliary=None).eval()
    terms, plain = [], model.objective._contrast
    model.objective._contrast = lambda *arguments: terms.append(plain(*arguments)) or terms[-1]
    output = model(pixel_values=tiny_views()["pixel_values"])
    assert len(terms) == 2 and output.loss.item() == pytest.approx(sum(terms).item(), rel=1e-6)
