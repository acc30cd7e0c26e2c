import os
import signal

import pytest
from accelerate import Accelerator

from hssl_hf.engine import launch
from hssl_hf.engine.launch import LaunchError, check_launch
from hssl_hf.engine.signals import SignalHandler


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
    with pytest.raises(LaunchError, match=r"2 processes were requested, but this one sees 1") as error:
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
    with pytest.raises(LaunchError, match="2 processes were requested, but this one sees 1 and 1 respond"):
        check_launch(alone)


def test_other_parents_request_nothing(alone, monkeypatch):
    class Process:
        def __init__(self, pid):
            pass

        def cmdline(self):
            return ["bash", "-c", "run --num_processes 3"]

    monkeypatch.setattr(launch.psutil, "Process", Process)
    check_launch(alone)


def test_signals_are_remembered_not_obeyed():
    codes = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}
    before = {number: signal.getsignal(number) for number in codes}
    try:
        for number, code in codes.items():
            interrupt = SignalHandler()
            assert interrupt.number == 0
            os.kill(os.getpid(), number)
            assert (interrupt.number, interrupt.exit_code) == (number, code)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
