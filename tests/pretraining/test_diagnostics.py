"""Every alarm, provoked by its cause."""

import json

import pytest
import torch

from hssl_hf.modules.ema import copy_to_teacher
from hssl_hf.pretraining.diagnostics import TrainingMonitor, add_diagnostics, diagnose
from tests.conftest import siamese_views, tiny_model, tiny_siamese, tiny_views


def metrics(model, views: dict, steps: int = 3, **arguments) -> tuple[dict, int | None]:
    """Metrics of the log after some steps, and the largest possible rank."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.student.parameters() if p.requires_grad], 1e-3)
    for _ in range(steps):
        output = model(**views, **arguments)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_teacher(0.9)
    values = {"loss": output.loss.item(), **{name: value.item() for name, value in (output.losses | output.metrics).items()}}
    if output.get("discrepancy") is not None:
        values["discrepancy"] = output.discrepancy.item()
    rank = add_diagnostics(values, output.losses, output.get("teacher_pooler_output"))
    return values, rank


def names(values, rank=None, prototypes=None) -> set[str]:
    return {alarm.name for alarm in diagnose(values, prototypes, rank)}


def test_healthy_training_raises_no_alarm():
    torch.manual_seed(0)
    views = tiny_views(images=16)
    images = torch.nn.functional.interpolate(torch.randn(16, 3, 4, 4), size=32, mode="bicubic")
    views["pixel_values"] = 2 * images[None] + 0.3 * views["pixel_values"]
    views["local_pixel_values"] = 2 * images[None, :, :, 8:24, 8:24] + 0.3 * views["local_pixel_values"]
    model = tiny_model(drop_path_rate=0.0)
    for module in model.student.modules():
        if isinstance(module, torch.nn.Linear):  # weights of .02 are too small for so narrow a network, which would collapse
            torch.nn.init.xavier_normal_(module.weight)
    copy_to_teacher(model.student, model.teacher)
    values, rank = metrics(model, views, steps=20, teacher_temperature=0.04)
    assert names(values, rank, prototypes=40) == set(), values


def test_soft_targets_make_a_uniform_teacher():
    values, rank = metrics(tiny_model(), tiny_views(images=8), teacher_temperature=10.0)
    assert "the teacher is uniform" in names(values, rank, prototypes=40)


def test_without_centering_one_prototype_wins():
    model = tiny_model(center_momentum=1.0)
    for network in (model.student, model.teacher):
        for projection in network.heads.projections.values():
            torch.nn.init.constant_(projection[4].bias, 1.0)  # one direction common to all images
    values, rank = metrics(model, tiny_views(images=8), teacher_temperature=0.002)
    assert "the teacher is constant" in names(values, rank, prototypes=40)


def test_student_that_does_not_learn():
    model = tiny_model(projection_size=1024)
    values, rank = metrics(model, tiny_views(images=8), steps=1, teacher_temperature=0.04)
    assert "the student has learned nothing" in names(values, rank, prototypes=40)


def test_identical_images():
    views = {name: value[:1, :1].expand(len(value), 12, *value.shape[2:]).contiguous() for name, value in tiny_views().items()}
    values, rank = metrics(tiny_model(drop_path_rate=0.0), views, teacher_temperature=0.04)
    assert {"the features fill few dimensions", "head and base agree"} <= names(values, rank, prototypes=40)


@pytest.mark.slow
def test_identical_views():
    views = tiny_views(images=8, local=0)
    views["pixel_values"][1] = views["pixel_values"][0]
    views["bool_masked_pos"][:] = False
    model = tiny_model(drop_path_rate=0.0, auxiliary=None, cls_supervision=["base->base"])
    values, rank = metrics(model, views, steps=150, teacher_temperature=0.04)
    assert {"the task is too easy", "a term of the loss has no weight"} <= names(values, rank, prototypes=40)


def test_collapsed_targets():
    model = tiny_siamese()
    with torch.no_grad():
        for name, parameter in model.teacher.projector.named_parameters():
            if name.endswith("weight"):
                parameter.zero_()
            else:
                parameter.copy_(torch.randn_like(parameter))
    output = model(**siamese_views())
    assert names({"collapse": output.metrics["collapse"].item()}) == {"the targets are all alike"}


@pytest.mark.parametrize("dimensions", [1, 3, 16])
def test_rank_me_counts_dimensions(dimensions):
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(32, 32)).Q[:dimensions]
    coordinates = torch.linalg.qr(torch.randn(100, dimensions)).Q
    values = {}
    assert add_diagnostics(values, (), coordinates @ basis) == 32
    assert values == {"rank_me": pytest.approx(dimensions, rel=1e-3)}


@pytest.mark.parametrize("features", [torch.zeros(4, 8), torch.ones(1, 8)])
def test_features_without_rank_do_not_end_a_run(features):
    values = {}
    add_diagnostics(values, (), features)
    assert values == {"rank_me": 1.0}


@pytest.mark.parametrize("terms", [{"pixels": 3.0, "representations": 1.0}, {"positive": -3.0, "negative": 1.0}])
def test_fractions_of_the_terms_of_every_method(terms):
    values = {"loss": 4.0, **terms}
    add_diagnostics(values, terms, None)
    assert [values[f"loss_fraction_{name}"] for name in terms] == [0.75, 0.25]


def test_alarms_need_patience_are_raised_once_and_recorded(tmp_path, caplog):
    monitor, collapsed, healthy = TrainingMonitor(tmp_path, None, first_step=10), {"collapse": 0.99}, {"collapse": 0.1}
    raised = [len(monitor.examine(step, collapsed, None)) for step in (5, 8, 10, 11, 12, 13)]
    assert raised == [0, 0, 0, 0, 1, 0]
    for values in (collapsed, collapsed, healthy, collapsed, collapsed):
        assert monitor.examine(20, values, None) == []
    (line,) = [json.loads(line) for line in (tmp_path / "alarms.jsonl").read_text().splitlines()]
    assert (line["step"], line["name"]) == (12, "the targets are all alike") and "negative_weight" in line["remedy"]
    assert "alarm at step 12: the targets are all alike: 99.0 %" in caplog.text
