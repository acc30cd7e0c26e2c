"""Signals that stop a run: how they are received, and what becomes of runs through the real launchers."""

import os
import signal
import subprocess
import sys
from itertools import product

import psutil
import pytest

from hssl_hf.engine.signals import Interrupted, stopping_signals
from tests.launches import PHASES, SCRIPT, settings_of, stopped_well, wait_for_phase

CODES = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130, signal.SIGHUP: 75}


@pytest.mark.parametrize("number", CODES)
def test_a_signal_ends_what_can_be_repeated_and_is_recorded_elsewhere(number):
    before = signal.getsignal(number)
    with stopping_signals() as signals, signals.deferred():
        os.kill(os.getpid(), number)
        assert (signals.number, signals.exit_code) == (number, CODES[number])
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.number == number, "that of the first"
        signals.run_until_signal(lambda: pytest.fail("the run is to stop"))
    with stopping_signals() as signals, signals.deferred():
        signals.run_until_signal(lambda: os.kill(os.getpid(), number) or pytest.fail("not cut short"))
        os.kill(os.getpid(), number)
    with pytest.raises(Interrupted) as error, stopping_signals():
        os.kill(os.getpid(), number)
    assert error.value.code == CODES[number] and signal.getsignal(number) == before


def test_nested_uses_share_one_handler():
    with stopping_signals() as outer, stopping_signals() as inner:
        assert outer is inner


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
TARGETS = ("process", "hssl-hf", "accelerate launch", "group")
TABLE = list(product(SIGNALS, TARGETS, (1, 2), (0, 2), PHASES))


def pairwise(rows: list[tuple]) -> list[tuple]:
    """Rows that hold every pair of values of two columns that any row holds."""
    chosen, missing = [], {(i, row[i], j, row[j]) for row in rows for i in range(len(row)) for j in range(i)}
    while missing:
        best = max(rows, key=lambda row: sum(row[i] == a and row[j] == b for i, a, j, b in missing))
        missing = {pair for pair in missing if not (best[pair[0]] == pair[1] and best[pair[2]] == pair[3])}
        chosen.append(best)
    return chosen


CASES = TABLE if os.environ.get("HSSL_HF_SIGNAL_TABLE") == "full" else pairwise(TABLE)
FAST = [(signal.SIGTERM, "accelerate launch", 1, 2, "training")]
MARKED = [*FAST, *(pytest.param(*row, marks=pytest.mark.slow) for row in CASES if row not in FAST)]


def command_of(target: str, processes: int) -> list[str]:
    """The command line of a launcher, without the settings of the run."""
    config = str(SCRIPT.parent / "accelerate" / f"{'cpu' if processes == 2 else 'single'}.yaml")
    options = ["--main_process_port", "0", "--config_file", config, "--num_processes", str(processes)]
    if target == "hssl-hf":
        return ["-m", "hssl_hf", "pretrain", "--launch", " ".join(options)]
    if target == "process" and processes == 1:
        return ["-m", "hssl_hf", "pretrain"]
    return ["-m", "accelerate.commands.accelerate_cli", "launch", *options, str(SCRIPT)]


@pytest.mark.fault("signals")
@pytest.mark.parametrize(("number", "target", "processes", "workers", "phase"), MARKED)
def test_signals_through_launchers(tmp_path, number, target, processes, workers, phase):
    """HSSL_HF_SIGNAL_TABLE=full with the slow tests runs every combination, without it every pair of two columns occurs.

    The launcher's own exit code is checked where the launcher is ours.
    """
    folder, log = tmp_path / "run", tmp_path / "errors.txt"
    settings = [*settings_of("hssl"), f"run.output_dir={folder}", f"data.num_workers={workers}", *PHASES[phase]]
    command = [sys.executable, *command_of(target, processes), *settings]
    environment = {**os.environ, "TQDM_MININTERVAL": "0", "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        launched = subprocess.Popen(command, stderr=file, stdout=file, env=environment, start_new_session=True)
    wait_for_phase(launched, phase, folder)
    started = psutil.Process(launched.pid).children(recursive=True)
    if target == "group":
        os.killpg(launched.pid, number)
    elif target == "process" and processes == 2:
        next(p for p in started if p.environ().get("RANK") == "1" and SCRIPT.name in " ".join(p.cmdline())).send_signal(number)
    else:
        launched.send_signal(number)
    code = launched.wait(timeout=120)
    assert not psutil.wait_procs(started, timeout=60)[1], "something is left running"
    errors = log.read_text()
    ours = target == "hssl-hf" or (target == "process" and processes == 1)
    if ours:
        assert code == CODES[number], errors
    stopped_well(folder, errors if ours else "")
