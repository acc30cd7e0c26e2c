"""Engines are the same training; the full table is `make equivalence`."""

import os
import sys

import pytest
import torch
import yaml
from torch.distributed import DistBackendError

from hssl_hf.engine.distributed import ended_peers_as_errors, make_accelerator
from hssl_hf.engine.launch import LaunchError
from tests.conftest import ROOT
from tests.faults import refused
from training.benchmarks import engine_equivalence as equivalence

CONFIGS = ROOT / "training" / "accelerate"


@pytest.mark.slow
def test_sharded_engines_equal_one_process(tmp_path, capsys):
    """FSDP2 and DeepSpeed ZeRO-2 in two processes, through the launcher, with frozen prototypes, clipped and resumed."""
    pytest.importorskip("deepspeed")
    assert equivalence.compare("ibot", ["fsdp2", "zero2"], tmp_path), capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("method", list(equivalence.METHODS))
def test_every_engine_equals_one_process(tmp_path, capsys, method):
    pytest.importorskip("deepspeed")
    assert equivalence.compare(method, list(equivalence.ENGINES), tmp_path), capsys.readouterr().out


def test_a_run_is_resumed_under_the_next_engine_of_the_same_recipe():
    engines = list(equivalence.ENGINES)
    following = {engine: equivalence.next_of(engine, engines) for engine in engines}
    assert following["one"] == "ddp" and following["zero2"] == "one" and following["accumulated"] == "zero2 accumulated"
    assert following["zero2 accumulated"] == "accumulated" and equivalence.next_of("one", ["one"]) == "one"


def test_weights_that_differ_are_detected():
    ours = {"student.a": torch.zeros(3), "teacher.a": torch.ones(2)}
    theirs = {"student.a": torch.tensor([0.0, 0.5, 0.0]), "teacher.a": torch.ones(2)}
    assert equivalence.largest(ours, theirs, "student") == 0.5 and equivalence.largest(ours, theirs, "teacher") == 0
    assert equivalence.largest({**ours, "teacher.a": torch.ones(2).bfloat16()}, theirs, "teacher") == float("inf")


@pytest.mark.parametrize("stage", [0, 3])
def test_other_stages_of_zero_are_refused(monkeypatch, stage):
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", str(stage))
    with pytest.raises(LaunchError, match=rf"ZeRO-{stage} is not supported: .* deepspeed_zero2, or fsdp2"):
        make_accelerator(bf16=False, accumulate=1, images_per_process=4)


@pytest.mark.fault("missing extras")
def test_the_extra_of_deepspeed_is_named_where_it_is_not_installed(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with refused("DeepSpeed is not installed", "pip install 'hssl-hf[deepspeed]'"):
        make_accelerator(bf16=False, accumulate=1, images_per_process=4)


@pytest.mark.fault("launches")
@pytest.mark.parametrize("accelerators", [False, True])
def test_deepspeed_is_not_left_out_where_cpus_are_requested(monkeypatch, accelerators):
    """Stage 3 is refused behind the check, which shows that DeepSpeed would be used."""
    pytest.importorskip("deepspeed")
    for name, value in {"USE_DEEPSPEED": "true", "DEEPSPEED_ZERO_STAGE": "3", "USE_CPU": "true"}.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerators)
    with pytest.raises(LaunchError, match="use_cpu are requested together" if accelerators else "ZeRO-3 is not supported"):
        make_accelerator(bf16=False, accumulate=1, images_per_process=4)
    assert ("ACCELERATE_USE_CPU" in os.environ) == accelerators


@pytest.mark.fault("launches")
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:5"),
        DistBackendError("NCCL error in ProcessGroupNCCL.cpp: remote process exited or there was a network error"),
    ],
)
def test_a_process_that_does_not_respond_is_a_consequence(error):
    with refused("another process", "resume_from_checkpoint=auto"), ended_peers_as_errors():
        raise error
    with pytest.raises(RuntimeError, match="something else"), ended_peers_as_errors():
        raise RuntimeError("something else")


def test_the_first_fsdp_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.delenv("FSDP_VERSION", raising=False)
    with pytest.raises(LaunchError, match=r"--config_file fsdp2"):
        make_accelerator(bf16=False, accumulate=1, images_per_process=4)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_leave_precision_to_the_recipe(path):
    config = yaml.safe_load(path.read_text())
    assert config["mixed_precision"] == "no" and path.read_text().startswith("# ")
