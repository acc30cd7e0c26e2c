import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from hssl_hf.engine import launcher
from tests.faults import ends_well, refused
from tests.launches import TINY
from tests.processes import free_port

INT, TERM, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGKILL


@pytest.fixture
def launch(monkeypatch):
    """Run a launcher that behaves as a function, with the signal handlers restored."""
    before = {number: signal.getsignal(number) for number in launcher.STOPPING}
    monkeypatch.delenv(launcher.LAUNCH_OPTIONS, raising=False)

    def run(function, *options: str) -> int:
        monkeypatch.setattr(launcher, "launch_command", function)
        return launcher.run_launcher(list(options), ["pretrain", "seed=1"])

    yield run
    os.environ.pop(launcher.LAUNCH_OPTIONS, None)
    launcher.logging.disable(launcher.logging.NOTSET)
    for number, handler in before.items():
        signal.signal(number, handler)


def failed(*codes: int):
    return ChildFailedError("hssl_hf", {rank: ProcessFailure(rank, 1, code, "") for rank, code in enumerate(codes)})


@pytest.mark.fault("launches")
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (failed(75, 75), 75), (failed(130, 75), 130), (failed(2, 75), 2), (failed(75, 2), 2), (failed(2, -TERM), 2),
        (failed(1, -TERM), 1), (failed(-KILL, -TERM), 137), (subprocess.CalledProcessError(75, "python"), 75),
        (subprocess.CalledProcessError(130, "python"), 130), (subprocess.CalledProcessError(2, "python"), 2),
    ],
)  # fmt: skip
def test_the_exit_code_is_that_of_the_run(launch, error, code, capsys):
    def fail(_options):
        raise error

    assert launch(fail) == code and launch(lambda _: None) == 0
    errors = capsys.readouterr().err
    assert ("killed by SIGKILL" in errors) == (code == 137) and "Traceback" not in errors


@pytest.mark.parametrize(("number", "code"), [(TERM, 75), (signal.SIGUSR1, 75), (INT, 130), (signal.SIGHUP, 75)])
def test_signals_are_passed_on_to_the_processes_of_the_run_alone(launch, monkeypatch, number, code):
    """A process that the signal ends while it starts has the exit code of an interruption too."""
    sent = []

    def child(name: str) -> SimpleNamespace:
        return SimpleNamespace(cmdline=lambda: ["python", "-m", name], send_signal=lambda number: sent.append((name, number)))

    children = [child("hssl_hf"), child("resource_tracker")]
    monkeypatch.setattr(launcher.psutil, "Process", lambda: SimpleNamespace(children=lambda: children))

    def interrupted(_options):
        os.kill(os.getpid(), number)
        raise failed(-number)

    assert launch(interrupted) == code and sent == [("hssl_hf", number)]


def test_the_launcher_gets_options_and_program(launch):
    seen = []
    assert launch(seen.append, "--num_processes", "2", "--cpu") == 0
    (options,) = seen
    assert options.num_processes == 2 and options.cpu and options.module and options.signals_to_handle == "SIGQUIT"
    assert (options.training_script, options.training_script_args) == ("hssl_hf", ["pretrain", "seed=1"])
    assert os.environ[launcher.LAUNCH_OPTIONS] == "--num_processes 2 --cpu"


@pytest.mark.fault("launches")
@pytest.mark.parametrize("options", [["--multi_gpu", "--num_processes", "1"], ["--cpu", "--use_fsdp"], ["--config_file", "no"]])
def test_options_that_do_not_fit_are_refused(launch, options):
    with refused(*options):
        launch(launcher.launch_command, *options)


@pytest.mark.slow
@pytest.mark.fault("launches")
@pytest.mark.parametrize("setting", ["optim.batch_size=-1", "optim.batch_size=7", "model.auxiliary=none", "data.path=no/way/"])
def test_what_two_processes_refuse_is_reported_once(tmp_path, setting):
    options = f"--config_file cpu --num_processes 2 --main_process_port {free_port()}"
    command = [sys.executable, "-m", "hssl_hf", "pretrain", *TINY, f"run.output_dir={tmp_path}/run", setting]
    done = subprocess.run([*command, "--launch", options], capture_output=True, text=True)
    ends_well(done)
    assert done.stderr.count("error:") == 1 and len(done.stderr.splitlines()) < 10, done.stderr
