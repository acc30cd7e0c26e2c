"""The program killed, interrupted, resumed, spread over processes and out of disk space."""

import os
import random
import shutil
import signal
import subprocess
import sys
from subprocess import CompletedProcess

import psutil
import pytest
import torch

from tests.data.test_stream import png
from tests.faults import ends_well
from tests.launches import (
    PHASES,
    SCRIPT,
    TINY,
    losses,
    settings_of,
    start,
    stopped_well,
    wait_for_phase,
    wait_for_step,
    weights,
)
from tests.processes import Program, wait_until


@pytest.mark.parametrize(
    ("workers", "method"),
    [(0, "hssl"), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((2, "hssl"), (1, "siamese_im")))],
)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, workers, method):
    """kill -9 in mid-training: losses of all steps and final weights are the same bits, with drop path and shuffling."""
    arguments = [f"data.num_workers={workers}", "model.drop_path_rate=0.3", f"seed={workers}"]
    reference = start(tmp_path / "reference", *arguments, "run.export=false", method=method)
    killed = start(tmp_path / "killed", *arguments, method=method)
    wait_for_step(killed, 6 + os.getpid() % 14)
    killed.kill()
    killed.communicate()
    reference.communicate()
    assert reference.returncode == 0 and killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "export").exists()
    resumed = start(tmp_path / "killed", *arguments, "resume_from_checkpoint=auto", "run.export=false", method=method)
    _, errors = resumed.communicate()
    assert resumed.returncode == 0, errors
    assert losses(tmp_path / "killed") == losses(tmp_path / "reference") and len(losses(tmp_path / "reference")) == 24
    actual, expected = weights(tmp_path / "killed"), weights(tmp_path / "reference")
    assert actual.keys() == expected.keys() and all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.fault("signals")
@pytest.mark.parametrize(
    ("number", "target", "workers", "phase"),
    [
        (signal.SIGTERM, "group", 2, "training"),
        (signal.SIGUSR1, "every process", 1, "saving"),
        (signal.SIGINT, "group", 0, "probing"),
        (signal.SIGTERM, "process", 1, "exporting"),
        (signal.SIGINT, "every process", 2, "training"),
        (signal.SIGHUP, "process", 0, "saving"),
    ],
)
def test_signals_end_a_run_with_a_checkpoint(tmp_path, number, target, workers, phase):
    """Also where a scheduler sends the signal to workers too; nothing is left running."""
    folder = tmp_path / "run"
    process = start(folder, f"data.num_workers={workers}", "run.save_steps=1000", *PHASES[phase])
    wait_for_phase(process, phase, folder)
    children = psutil.Process(process.pid).children(recursive=True)
    if target == "group":
        os.killpg(process.pid, number)
    elif target == "process":
        process.send_signal(number)
    else:
        for each in [child for child in children if "tracker" not in " ".join(child.cmdline())]:
            each.send_signal(number)
        process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else 75), errors
    stopped_well(folder, errors)
    assert "continue with resume_from_checkpoint=auto" in errors
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert not (folder / "export").exists()


@pytest.mark.fault("signals")
def test_a_run_stops_when_its_launcher_is_gone(tmp_path):
    """The launcher here forks the run and waits; it is killed, of which the run learns from the kernel alone."""
    folder = tmp_path / "run"
    code = f"""
import os, runpy, sys
sys.argv[0] = {str(SCRIPT)!r}
if os.fork() == 0:
    runpy.run_path(sys.argv[0], run_name="__main__")
os.wait()
"""
    arguments = [*settings_of("hssl"), f"run.output_dir={folder}", "data.num_workers=1"]
    environment = {**os.environ, "TQDM_MININTERVAL": "0", "ACCELERATE_MIXED_PRECISION": "no"}
    launcher = Program("-c", code, *arguments, environment=environment)
    wait_for_step(launcher, 3)
    (run,) = psutil.Process(launcher.pid).children()
    left = [run, *run.children(recursive=True)]
    launcher.kill()
    _, errors = launcher.communicate()  # ends when the run has closed standard error
    assert not psutil.wait_procs(left, timeout=10)[1]
    stopped_well(folder, errors)


@pytest.mark.fault("signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_before_training_ends_the_run_at_once(tmp_path, number, code):
    """It comes with the first library; nothing has been written that a later start would stumble over."""
    program = f"""
import os, sys
class Signal:
    def find_spec(self, name, path=None, target=None):
        if name == "hssl_hf.pretraining.trainer":
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Signal())
from hssl_hf.__main__ import main
sys.exit(main())
"""
    process = Program("-c", program, "pretrain", *TINY, f"run.output_dir={tmp_path}/run")
    output, errors = process.communicate()
    ends_well(subprocess.CompletedProcess([], process.returncode, output, errors), code=code)
    assert not (tmp_path / "run").exists()


@pytest.mark.fault("broken pipes")
def test_a_run_ends_with_a_checkpoint_when_standard_error_is_closed(tmp_path):
    """As behind `2>&1 | head`."""
    folder = tmp_path / "run"
    process = start(folder, "data.num_workers=0", "run.save_steps=1000")
    wait_for_step(process, 3)
    process.stderr.close()
    process.join()
    assert process.returncode == 75
    stopped_well(folder, "")


@pytest.mark.fault("two runs in a folder")
def test_a_second_run_in_the_folder_is_refused_until_it_takes_over(tmp_path):
    folder = tmp_path / "run"
    first = start(folder, "data.num_workers=0", "run.save_steps=4", "optim.epochs=1", "run.logging_steps=100")
    wait_for_step(first, 4)
    wait_until(first, lambda: any(folder.glob("checkpoints/step-*")))
    second = start(folder, "resume_from_checkpoint=auto", "optim.epochs=1")
    output, errors = second.communicate()
    done = subprocess.CompletedProcess([], second.returncode, output, errors)
    ends_well(done, f"process {first.pid}", "already trains in", str(folder), "--take-over")
    third = start(folder, "resume_from_checkpoint=auto", "optim.epochs=1", "data.num_workers=0", "--take-over")
    output, errors = first.communicate()
    done = subprocess.CompletedProcess([], first.returncode, output, errors[errors.rindex("error:") :])
    ends_well(done, f"taken over by process {third.pid}")
    third.send_signal(signal.SIGTERM)
    _, errors = third.communicate()
    assert third.returncode == 75, errors
    stopped_well(folder, errors)


@pytest.mark.fault("checkpoints")
def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(tmp_path):
    folder = tmp_path / "run"
    start(folder, "data.num_workers=0", "run.export=false", "optim.epochs=0.016").communicate()
    log = (folder / "log.jsonl").read_bytes()
    for path in (folder / "checkpoints").iterdir():
        (path / "model.safetensors").write_bytes(b"cut")
    for resume in ("auto", "never"):
        again = start(folder, "data.num_workers=0", f"resume_from_checkpoint={resume}", "optim.epochs=0.016")
        output, errors = again.communicate()
        ends_well(subprocess.CompletedProcess([], again.returncode, output, errors), str(folder), "run.output_dir")
        assert (folder / "log.jsonl").read_bytes() == log


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hssl", "siamese_im"])
def test_one_of_two_processes_is_killed(tmp_path, method):
    """Two gloo processes, one of them killed, resumed, equal an uninterrupted pair; then one process continues."""

    def launch(folder, *arguments):
        command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--main_process_port", "0"]
        command += ["--config_file", str(SCRIPT.parent / "accelerate" / "cpu.yaml"), "--num_processes", "2"]
        command += [str(SCRIPT), *settings_of(method), f"run.output_dir={folder}", "data.num_workers=1", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_MININTERVAL": "0"}
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)

    reference, part = launch(tmp_path / "reference"), tmp_path / "part"
    _, errors = reference.communicate()
    assert reference.returncode == 0, errors
    killed = launch(part)
    wait_for_step(killed, 13)
    ranks = [p for p in psutil.Process(killed.pid).children(recursive=True) if p.environ().get("LOCAL_RANK") == "1"]
    ranks[0].kill()
    killed.communicate()
    assert killed.returncode != 0 and not (part / "export").exists()
    resumed = launch(part, "resume_from_checkpoint=auto")
    _, errors = resumed.communicate()
    assert resumed.returncode == 0, errors
    assert losses(part) == losses(tmp_path / "reference")
    assert all(torch.equal(a, b) for a, b in zip(weights(part).values(), weights(tmp_path / "reference").values(), strict=True))

    shutil.rmtree(part / "checkpoints" / "step-00000024")
    alone = start(part, "resume_from_checkpoint=auto", "data.num_workers=1", method=method)
    errors = alone.communicate()[1]
    assert alone.returncode == 0 and "this run had 2 processes and is resumed with 1" in errors, errors
    assert len(losses(part)) == 24 and losses(part)[:20] == losses(tmp_path / "reference")[:20]


@pytest.mark.slow
def test_launch_that_would_run_one_process_is_refused(tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2"]
    done = subprocess.run([*command, str(SCRIPT), *TINY, f"run.output_dir={tmp_path}/run"], capture_output=True, text=True)
    assert done.returncode != 0 and "--config_file cpu --num_processes 2" in done.stderr


def test_dead_worker_is_reported(tmp_path):
    """As when the system kills it for lack of memory; the run can be resumed."""
    folder = tmp_path / "run"
    process = start(folder, "data.num_workers=1")
    wait_for_step(process, 7)
    (worker,) = [p for p in psutil.Process(process.pid).children() if "resource_tracker" not in " ".join(p.cmdline())]
    worker.kill()
    _, errors = process.communicate()
    assert process.returncode == 2 and "error: a data loader worker died" in errors and "Traceback" not in errors, errors
    resumed = start(folder, "data.num_workers=1", "resume_from_checkpoint=auto", "run.export=false")
    _, errors = resumed.communicate()
    assert resumed.returncode == 0 and len(losses(folder)) == 24, errors


@pytest.mark.fault("resuming")
def test_a_run_is_resumed_where_its_images_have_moved_and_with_other_workers(tmp_path):
    """From a folder of another name with the same images; one with other images is refused."""
    for number in range(96):
        (tmp_path / "photos" / f"class {number % 3}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / f"class {number % 3}" / f"{number}.png").write_bytes(png(number, 28))
    settings = ["optim.epochs=2", "optim.warmup_epochs=0", "run.export=false", "data.num_workers=0"]
    folder = tmp_path / "run"
    first = start(folder, *settings, f"data.path={tmp_path}/photos")
    wait_for_step(first, 6)
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate()
    assert first.returncode == 75, errors
    moved = (tmp_path / "photos").rename(tmp_path / "moved photos [1]::2")
    shutil.copytree(moved, tmp_path / "others")
    (tmp_path / "others" / "class 0" / "0.png").write_bytes(png(999, 28))
    settings += ["resume_from_checkpoint=auto", "data.num_workers=1"]
    refused = start(folder, *settings, f"data.path={tmp_path}/others")
    _, errors = refused.communicate()
    ends_well(CompletedProcess([], refused.returncode, "", errors), "data.path", "photos ->", "resume")
    resumed = start(folder, *settings, f"data.path={moved}")
    _, errors = resumed.communicate()
    assert resumed.returncode == 0 and "this run had 0 workers and is resumed with 1" in errors, errors
    assert "96 images in 3 folders, 0 left out" in errors
    assert len(losses(folder)) == 12


def test_full_disk_keeps_the_earlier_checkpoint(tmp_path):
    """Files of more than 64 KiB cannot be written from step 10 on: the checkpoint of step 5 stays and is named."""
    folder = tmp_path / "run"
    first = start(folder, "data.num_workers=0")
    wait_for_step(first, 6)
    first.kill()
    first.communicate()
    before = {path.name for path in (folder / "checkpoints").glob("step-*")}
    full = start(folder, "data.num_workers=0", "resume_from_checkpoint=auto", max_file_size=2**16)
    _, errors = full.communicate()
    assert full.returncode == 2 and "could not be written" in errors and "Make room" in errors, errors
    assert {path.name for path in (folder / "checkpoints").iterdir() if path.name.startswith("step-")} == before
    assert sorted(before)[-1] in errors and "Traceback" not in errors


def test_damaged_checkpoint_is_quarantined(tmp_path):
    """The newest checkpoint cut short, as by a full disk or a broken copy: the one before it is resumed, to the same bits."""
    folder = tmp_path / "run"
    reference = start(folder, "data.num_workers=0", "run.export=false")
    reference.communicate()
    expected = losses(folder), weights(folder)
    newest = folder / "checkpoints" / "step-00000024" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    resumed = start(folder, "data.num_workers=0", "resume_from_checkpoint=auto", "run.export=false")
    _, errors = resumed.communicate()
    assert resumed.returncode == 0, errors
    assert (
        "step-00000024 is damaged (optimizer.safetensors missing, cut short or changed)" in errors and "Traceback" not in errors
    )
    assert losses(folder) == expected[0]
    assert all(torch.equal(value, expected[1][name]) for name, value in weights(folder).items())
    assert (folder / "checkpoints" / "damaged-step-00000024").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_twenty_five_kills_change_nothing(tmp_path, workers):
    """kill -9 again and again, after some steps or in the middle of a checkpoint: the same bits as without."""
    settings = [f"data.num_workers={workers}", "optim.epochs=0.1", "run.save_steps=3", "model.drop_path_rate=0.2"]
    reference = start(tmp_path / "reference", *settings)
    reference.communicate()
    folder, dice, saving = tmp_path / "killed", random.Random(workers), 0
    for _ in range(25):
        process = start(folder, *settings, "resume_from_checkpoint=auto")
        done = wait_for_step(process, 0)
        if dice.random() < 0.5:
            wait_for_step(process, done + dice.randrange(4))
        else:
            wait_until(process, lambda: any(folder.glob("checkpoints/.*.draft/*")))
            saving += 1
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    last = start(folder, *settings, "resume_from_checkpoint=auto")
    _, errors = last.communicate()
    assert last.returncode == 0 and saving > 5, errors
    assert losses(folder) == losses(tmp_path / "reference") and len(losses(folder)) == 62
    actual, expected = weights(folder, 62), weights(tmp_path / "reference", 62)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    print(f"{workers} workers: 25 kills, {saving} of them while saving, {62 * 16} images")


@pytest.mark.slow
def test_memory_stays_flat_over_two_thousand_steps_and_twenty_resumes(tmp_path):
    """Interrupted every hundred steps: neither within a process nor from process to process does memory grow."""
    folder, settings = (
        tmp_path / "run",
        ["data.num_workers=0", "optim.epochs=3.3", "run.save_steps=50", "run.logging_steps=10"],
    )
    early, late, done = [], [], 0
    for _ in range(20):
        process = start(folder, *settings, "resume_from_checkpoint=auto")
        memory = psutil.Process(process.pid).memory_info
        wait_for_step(process, done + 30)
        early.append(memory().rss / 2**20)
        wait_for_step(process, done + 100)
        late.append(memory().rss / 2**20)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
        assert process.returncode == 75, errors
        done = max(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))
    print(f"{done} steps; MiB after 30 steps {early}, after 100 steps {late}")
    assert done >= 2000
    assert max(late[10:]) < 1.03 * max(late[:10]) and sum(late) < 1.03 * sum(early)
