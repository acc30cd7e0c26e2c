import os

import pytest
from accelerate import Accelerator

from hssl_hf.engine import launch
from hssl_hf.engine.launch import LaunchError, check_launch
from tests.faults import refused


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(launch, "default_config_file", "nowhere.yaml")
    return Accelerator(cpu=True)


def parent(monkeypatch, *arguments):
    class Process:
        def __init__(self, pid):
            assert pid == os.getppid()

        def cmdline(self):
            return ["python", "/bin/accelerate", "launch", *arguments]

    monkeypatch.setattr(launch.psutil, "Process", Process)


def test_one_process_is_fine(alone, monkeypatch):
    parent(monkeypatch, "--num_processes", "1", "train.py", "--num_processes", "9")
    check_launch(alone)


@pytest.mark.parametrize("form", [["--num_processes", "2"], ["--num-processes=2", "--cpu"], ["--cpu", "--num_processes=2"]])
def test_a_launcher_that_starts_fewer_is_caught(alone, monkeypatch, form):
    parent(monkeypatch, *form, "train.py")
    with pytest.raises(LaunchError, match=r"2 processes were requested, but the process group has 1") as error:
        check_launch(alone)
    assert "hssl-hf pretrain --launch '--config_file cpu --num_processes 2'" in str(error.value)


def test_a_configuration_file_counts_too(alone, monkeypatch, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("distributed_type: MULTI_CPU\nnum_processes: 4\n")
    parent(monkeypatch, "--config_file", str(config), "train.py")
    with pytest.raises(LaunchError, match="4 processes were requested"):
        check_launch(alone)


def test_processes_that_believe_to_be_alone_are_caught(alone, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LaunchError, match="2 processes were requested, but the process group has 1, of which 1 responded"):
        check_launch(alone)


def test_other_parents_request_nothing(alone, monkeypatch):
    class Process:
        def __init__(self, pid):
            pass

        def cmdline(self):
            return ["bash", "-c", "run --num_processes 3"]

    monkeypatch.setattr(launch.psutil, "Process", Process)
    check_launch(alone)


@pytest.mark.parametrize("form", ["options", "file", "own launcher"])
def test_several_machines_get_a_command_that_joins_them(alone, monkeypatch, tmp_path, form):
    options = ["--num_processes", "4", "--num_machines=2"]
    if form == "file":
        (tmp_path / "config.yaml").write_text("num_processes: 4\nnum_machines: 2\n")
        options = ["--config_file", str(tmp_path / "config.yaml")]
    if form == "own launcher":
        monkeypatch.setenv("HSSL_HF_LAUNCH_OPTIONS", " ".join(options))
    else:
        parent(monkeypatch, *options, "train.py")
    with refused("4 processes", "each of the 2 machines", "--num_machines 2", "--machine_rank", "--main_process_ip"):
        check_launch(alone)


@pytest.mark.parametrize(
    ("launched", "recipe", "warns"), [("bf16", "no", True), ("fp16", "bf16", True), ("bf16", "bf16", False)]
)
def test_precision_of_the_launcher_is_not_ignored_in_silence(alone, monkeypatch, caplog, launched, recipe, warns):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    check_launch(alone, recipe)
    assert (f"mixed_precision={launched} has no effect" in caplog.text) == bool(warns)
