"""Estimates of memory and time: what is counted is exact, and what is followed on fake tensors is what real steps hold."""

import json
import math

import pytest

from hssl_hf.config.recipe import RecipeError, load_recipe
from hssl_hf.engine.memory import GIB
from hssl_hf.fields import FieldError
from hssl_hf.pretraining import estimate as estimate_module
from hssl_hf.pretraining.estimate import ENGINES, ESTIMATE, ZERO_BUCKET, estimate, write_estimate
from hssl_hf.pretraining.step_memory import Moment
from hssl_hf.pretraining.worker_memory import PROCESS
from hssl_hf.runs.manifest import read_estimate
from tests.conftest import SAMPLE
from tests.launches import TINY

RECIPE = ["views.global_crop_size=28", "views.num_local_crops=0", f"data.path={SAMPLE}", "data.images_per_epoch=1600"]
TINY_MODEL = [value for value in TINY if value.startswith("model.")]
BLOCKS, REST = GIB // 16, GIB // 8  # gradients
MOMENTS = (Moment(2 * GIB, 0, 0), Moment(GIB, BLOCKS, 0), Moment(GIB // 2, BLOCKS, REST))


def recipe(*overrides: str):
    objective = ["model.objective=moco_v3", "model.patch_supervision=[]", "optim.batch_size=64", "optim.mixed_precision=no"]
    objective.append("optim.warmup_epochs=1")
    return load_recipe(None, [*TINY_MODEL, *RECIPE, *objective, *overrides])


@pytest.fixture
def followed(monkeypatch):
    monkeypatch.setattr(estimate_module, "follow_step", lambda *_, **__: MOMENTS)
    monkeypatch.setattr(estimate_module, "count_operations", lambda *_, **__: (1e9, 0.0))
    monkeypatch.setattr(estimate_module, "seconds_per_image", lambda *_, **__: 0.01)


def test_engines_divide_memory_as_documented(followed):
    """Of P trained parameters of 4 bytes: AdamW holds 2 P more, ZeRO's full copy 1 more, divided among the processes."""
    estimates = {engine: estimate(recipe(), engine, 2 if engine != "single" else 1, device_memory=80.0) for engine in ENGINES}
    trained = 4 * estimates["ddp"].parameters["all that is trained"]
    held = {engine: item.memory_items["optimizer"] / trained for engine, item in estimates.items()}
    assert held == {"single": 2, "ddp": 2, "fsdp2": 1, "zero1": 1.5, "zero2": 1.5}
    weights = {engine: item.memory_items["student"] for engine, item in estimates.items()}
    assert weights["fsdp2"] * 2 == weights["ddp"] == weights["zero2"] and weights["single"] == weights["ddp"]
    exchanged = {engine: item.memory_items.get("exchange of gradients", 0) for engine, item in estimates.items()}
    assert exchanged["single"] == 0 and exchanged["ddp"] == trained
    assert exchanged["zero1"] == exchanged["zero2"] == ZERO_BUCKET + trained / 2
    assert {item.memory_items["step"] for item in estimates.values()} == {2 * GIB}


def test_engines_divide_gradients_as_documented(followed, monkeypatch):
    late = (Moment(0, 0, 0), Moment(GIB, BLOCKS, REST))
    monkeypatch.setattr(estimate_module, "follow_step", lambda *_, **__: late)
    steps = {
        name: estimate(recipe(), name, 1 + (name != "single"), device_memory=80.0).memory_items["step"] - GIB
        for name in ENGINES
    }
    full = BLOCKS + REST
    assert steps == {"single": full, "ddp": full, "fsdp2": BLOCKS / 2 + REST, "zero1": full, "zero2": 0}


def test_time_and_verdict(followed):
    """25 steps an epoch; at 1 TFLOPS and 1 GFLOP an image a device sees a thousand images a second."""
    result = estimate(recipe("optim.epochs=4"), "ddp", processes=2, device_memory=1.0, device_tflops=1.0)
    assert (result.steps, result.images, result.images_per_second) == (100, 32, 2000.0)
    assert result.hours == pytest.approx(6400 / 2000 / 3600) and result.memory_items["step"] == 2 * GIB
    lines = [line.split()[:3] for line in result.table().splitlines()]
    assert lines[lines.index(["of", "it", "logits"]) - 1] == ["step:", "activations,", "gradients"]
    assert "DOES NOT FIT" in result.table() and "optim.gradient_accumulation_steps" in result.table()
    assert "speed of this machine" not in result.table()
    assert "fits" in estimate(recipe(), "ddp", 2, device_memory=80.0).table()
    assert "speed of this machine" in estimate(recipe(), "ddp", 2, device_memory=80.0).table()
    assert estimate(recipe("data.fraction=0.5", "optim.epochs=4"), device_memory=80.0).steps == 48, (
        "800 images are 12 full batches"
    )
    assert estimate(recipe(), device_memory=80.0).images_per_second == pytest.approx(100.0)


def test_data_workers_are_counted_beside_devices_and_within_processors(followed):
    result = estimate(recipe("data.num_workers=3", "data.shuffle_buffer_size=100"), "ddp", 2, device_memory=80.0)
    assert result.workers == 3 and result.worker_bytes > 3 * PROCESS
    assert "data workers" not in result.memory_items and "2 x 3 data workers take up to" in result.table()
    here = estimate(recipe("data.num_workers=3", "data.shuffle_buffer_size=100"), "ddp", 2)
    assert here.memory_items["data workers"] == result.worker_bytes and "beside the devices" not in here.table()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"processes": 0}, "processes: expected a whole number from 1 to 1048576, got 0"),
        ({"processes": -2}, "processes: expected a whole number from 1 to"),
        ({"device_memory": 0.0}, "device_memory: expected a number above 0 or null, got 0"),
        ({"device_memory": math.nan}, "device_memory: expected a number above 0 or null, got nan"),
        ({"device_tflops": 0}, "device_tflops: expected a number above 0 or null, got 0"),
        ({"engine": "zero3"}, "engine: expected one of 'single', 'ddp', 'fsdp2', 'zero1', 'zero2', got 'zero3'"),
        ({"engine": "single", "processes": 2}, "processes: expected 1 with the engine 'single', got 2"),
    ],
)
def test_numbers_out_of_range_are_refused(followed, arguments, message):
    with pytest.raises(FieldError, match=message):
        estimate(recipe(), **{"engine": "ddp", **arguments})


@pytest.mark.parametrize("key", ["optim.batch_size", "optim.gradient_accumulation_steps", "views.global_crop_size"])
def test_sizes_of_0_are_refused(key):
    with pytest.raises(RecipeError, match=rf"{key}: expected a whole number from \d+ to \d+, got 0"):
        recipe(f"{key}=0")


def test_impossible_launches_are_refused(followed):
    with pytest.raises(RecipeError, match="is not divisible by 3 processes"):
        estimate(recipe(), "ddp", processes=3)
    with pytest.raises(RecipeError, match=r"model\.auxiliary: expected one of 'convnext', .*, got 'convnet'"):
        estimate(recipe("model.auxiliary=convnet"))


def test_estimate_is_kept_for_the_run(followed, tmp_path):
    result = estimate(recipe(), "ddp", 2, device_memory=80.0)
    write_estimate(tmp_path / "run", result)
    record = json.loads((tmp_path / "run" / ESTIMATE).read_text())
    assert (
        record["needed_gib"] == pytest.approx(result.needed / GIB, abs=1e-3)
        and record["memory_items"]["step"] == result.memory_items["step"]
    )
    assert read_estimate(tmp_path / "run")["processes"] == 2 and read_estimate(tmp_path) is None
