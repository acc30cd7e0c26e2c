"""Every alarm, provoked by what causes it."""

import json

import pytest
import torch

from hssl_hf.modules.ema import copy_to_teacher
from hssl_hf.pretraining.diagnostics import TrainingMonitor, add_diagnostics, diagnose, rank_me
from tests.conftest import siamese_views, tiny_model, tiny_siamese, tiny_views


def figures(model, views: dict, steps: int = 3, **arguments) -> tuple[dict, int | None]:
    """What the log would hold after some steps, and the largest rank."""
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
    rank = add_diagnostics(values, output.get("teacher_pooler_output"))
    return values, rank


def names(values, rank=None, prototypes=None) -> set[str]:
    return {alarm.name for alarm in diagnose(values, prototypes, rank)}


def test_a_healthy_training_raises_none():
    torch.manual_seed(0)
    views = tiny_views(images=16)
    pictures = torch.nn.functional.interpolate(torch.randn(16, 3, 4, 4), size=32, mode="bicubic")
    views["pixel_values"] = 2 * pictures[None] + 0.3 * views["pixel_values"]
    views["local_pixel_values"] = 2 * pictures[None, :, :, 8:24, 8:24] + 0.3 * views["local_pixel_values"]
    model = tiny_model(drop_path_rate=0.0)
    for module in model.student.modules():
        if isinstance(module, torch.nn.Linear):  # weights of .02 are too small for so narrow a network, and it would be ill
            torch.nn.init.xavier_normal_(module.weight)
    copy_to_teacher(model.student, model.teacher)
    values, rank = figures(model, views, steps=20, teacher_temperature=0.04)
    assert names(values, rank, prototypes=40) == set(), values


def test_soft_targets_say_nothing():
    values, rank = figures(tiny_model(), tiny_views(images=8), teacher_temperature=10.0)
    assert "the teacher is uniform" in names(values, rank, prototypes=40)


def test_without_centring_one_prototype_wins():
    model = tiny_model(center_momentum=1.0)
    for network in (model.student, model.teacher):
        for projection in network.heads.projections.values():
            torch.nn.init.constant_(projection[4].bias, 1.0)  # one direction that all images share
    values, rank = figures(model, tiny_views(images=8), teacher_temperature=0.002)
    assert "the teacher is constant" in names(values, rank, prototypes=40)


def test_a_student_that_stands_still():
    model = tiny_model(projection_size=1024)
    values, rank = figures(model, tiny_views(images=8), steps=1, teacher_temperature=0.04)
    assert "the student has learned nothing" in names(values, rank, prototypes=40)


def test_images_that_are_all_the_same():
    views = {name: value[:1, :1].expand(len(value), 12, *value.shape[2:]).contiguous() for name, value in tiny_views().items()}
    values, rank = figures(tiny_model(drop_path_rate=0.0), views, teacher_temperature=0.04)
    assert {"the features fill few dimensions", "head and base agree"} <= names(values, rank, prototypes=40)


def test_views_that_are_all_the_same():
    views = tiny_views(images=8, local=0)
    views["pixel_values"][1] = views["pixel_values"][0]
    views["bool_masked_pos"][:] = False
    model = tiny_model(drop_path_rate=0.0, auxiliary=None, cls_supervision=["base->base"])
    values, rank = figures(model, views, steps=60, teacher_temperature=0.04)
    assert {"the task is too easy", "a term does not count"} <= names(values, rank, prototypes=40)


def test_targets_that_are_all_alike():
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
    assert rank_me(coordinates @ basis) == pytest.approx(dimensions, rel=1e-4)


def test_alarms_need_patience_come_once_and_are_written_down(tmp_path, caplog):
    doctor, ill, well = TrainingMonitor(tmp_path, None, first_step=10), {"collapse": 0.99}, {"collapse": 0.1}
    raised = [len(doctor.examine(step, ill, None)) for step in (5, 8, 10, 11, 12, 13)]
    assert raised == [0, 0, 0, 0, 1, 0]
    for values in (ill, ill, well, ill, ill):
        assert doctor.examine(20, values, None) == []
    (line,) = [json.loads(line) for line in (tmp_path / "alarms.jsonl").read_text().splitlines()]
    assert (line["step"], line["name"]) == (12, "the targets are all alike") and "negative_weight" in line["remedy"]
    assert "alarm at step 12: the targets are all alike: 99.0 %" in caplog.text
