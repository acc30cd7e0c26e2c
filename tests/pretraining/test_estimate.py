"""Estimates of memory and time: exact where they are counted, linear in what is measured."""

import json
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hssl_hf.config.recipe import RecipeError, load_recipe
from hssl_hf.engine.memory import GIB, peak_allocation
from hssl_hf.pretraining import estimate as estimate_module
from hssl_hf.pretraining.estimate import (
    ENGINES,
    ESTIMATE,
    StepCost,
    _convolution_backward,
    estimate,
    measure_step,
    write_estimate,
)
from hssl_hf.runs.manifest import read_estimate
from tests.conftest import SAMPLE
from tests.launches import TINY

RECIPE = ["views.global_crop_size=28", "views.num_local_crops=0", f"data.path={SAMPLE}", "data.images_per_epoch=1600"]
TINY_MODEL = [value for value in TINY if value.startswith("model.")]
STEP = StepCost(fixed=0.0, per_image=GIB / 16, logits_per_image=0.0, flops_per_image=1e9, seconds_per_image=0.01)


def recipe(*overrides: str):
    objective = ["model.objective=moco_v3", "model.patch_supervision=[]", "optim.batch_size=64", "optim.mixed_precision=no"]
    objective.append("optim.warmup_epochs=1")
    return load_recipe(None, [*TINY_MODEL, *RECIPE, *objective, *overrides])


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(estimate_module, "measure_step", lambda *_, **__: STEP)


def test_engines_divide_memory_as_documented(measured):
    """Of P trained parameters of 4 bytes: AdamW holds 2 P more, ZeRO's full copy 1 more, divided among the processes."""
    estimates = {engine: estimate(recipe(), engine, 2 if engine != "single" else 1, memory=80.0) for engine in ENGINES}
    trained = 4 * estimates["ddp"].parameters["all that is trained"]
    held = {engine: item.memory_items["optimizer"] / trained for engine, item in estimates.items()}
    assert held == {"single": 2, "ddp": 2, "fsdp2": 1, "zero1": 1.5, "zero2": 1.5}
    weights = {engine: item.memory_items["student"] for engine, item in estimates.items()}
    assert weights["fsdp2"] * 2 == weights["ddp"] == weights["zero2"] and weights["single"] == weights["ddp"]
    exchange = {engine for engine, item in estimates.items() if item.memory_items["exchange of gradients"]}
    assert exchange == {"ddp", "zero1", "zero2"}
    assert estimates["zero1"].memory_items["step"] - estimates["zero2"].memory_items["step"] == pytest.approx(trained / 2)


def test_time_and_verdict(measured):
    """25 steps an epoch; at 1 TFLOPS and 1 GFLOP an image a device sees a thousand images a second."""
    result = estimate(recipe("optim.epochs=4"), "ddp", processes=2, memory=1.0, tflops=1.0)
    assert (result.steps, result.images, result.images_per_second) == (100, 32, 2000.0)
    assert result.hours == pytest.approx(6400 / 2000 / 3600) and result.memory_items["step"] == pytest.approx(2 * GIB)
    assert "DOES NOT FIT" in result.table() and "optim.gradient_accumulation_steps" in result.table()
    assert "speed of this machine" not in result.table()
    assert "fits" in estimate(recipe(), "ddp", 2, memory=80.0).table()
    assert "speed of this machine" in estimate(recipe(), "ddp", 2, memory=80.0).table()
    assert estimate(recipe("data.fraction=0.5", "optim.epochs=4"), memory=80.0).steps == 48, "800 images are 12 full batches"
    assert estimate(recipe(), memory=80.0).images_per_second == pytest.approx(100.0)


def test_measured_step_predicts_a_larger_one():
    """The line through two small steps predicts the memory of a larger one."""
    step = measure_step(recipe(), 64, device_like=True)
    model = estimate_module.build_model(recipe()).train()
    call = partial(estimate_module._step, model, recipe(), estimate_module._samples(recipe(), model, 48))
    call()
    assert step.fixed + 48 * step.per_image == pytest.approx(peak_allocation(call), rel=0.05)
    assert step.flops_per_image > 1e6 and step.seconds_per_image > 0


def test_logits_are_counted_where_there_are_prototypes():
    """iBOT: one class token per view and branch, and the hidden patches, of student and teacher: K columns of 4 bytes each."""
    changes = ["model.objective=ibot", "model.num_prototypes=37", "model.cls_supervision=[base->base]", "model.auxiliary=null"]
    result = measure_step(recipe(*changes, "model.patch_supervision=[]"), 8)
    assert result.logits_per_image == pytest.approx(4 * 37 * (2 + 2))


def test_estimate_is_kept_for_the_run(measured, tmp_path):
    result = estimate(recipe(), "ddp", 2, memory=80.0)
    write_estimate(tmp_path / "run", result)
    record = json.loads((tmp_path / "run" / ESTIMATE).read_text())
    assert (
        record["needed_gib"] == pytest.approx(result.needed / GIB, abs=1e-3)
        and record["memory_items"]["step"] == result.memory_items["step"]
    )
    assert read_estimate(tmp_path / "run")["processes"] == 2 and read_estimate(tmp_path) is None


def test_impossible_launches_are_refused(measured):
    with pytest.raises(RecipeError, match="does not divide into 3 processes"):
        estimate(recipe(), "ddp", processes=3)
    with pytest.raises(RecipeError, match=r"model\.auxiliary: expected one of 'convnext', .*, got 'convnet'"):
        estimate(recipe("model.auxiliary=convnet"))


def test_model_on_the_meta_device_takes_no_memory():
    with torch.device("meta"):
        model = estimate_module.build_model(recipe())
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("groups", [1, 4])
def test_operations_of_convolutions_are_counted_with_their_groups(groups):
    """Forward 2 · outputs · weights per output; each of the two gradients as much again."""
    layer, x = torch.nn.Conv2d(4, 4, 3, padding=1, groups=groups), torch.randn(2, 4, 5, 5, requires_grad=True)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * (2 * 4 * 5 * 5) * (4 // groups * 9)
