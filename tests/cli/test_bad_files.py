"""Every command: files that cannot be read or written end in a message with their name, before the work where that is known."""

import errno
from pathlib import Path

import numpy as np
import pytest

import hssl_hf
from hssl_hf.cli import main as cli
from hssl_hf.config.recipe import load_recipe
from hssl_hf.engine.launch import LAUNCH_OPTIONS
from hssl_hf.experiments import frozen_evaluation
from tests.conftest import SAMPLE
from tests.faults import refused

TOKEN = "hf_" + "a" * 34


@pytest.fixture
def run(tmp_path):
    """A run without checkpoints."""
    (tmp_path / "run").mkdir()
    load_recipe(None, ["optim.epochs=2", "optim.warmup_epochs=0"]).save(tmp_path / "run" / "recipe.yaml")
    (tmp_path / "file").write_text("x")
    return tmp_path / "run"


def message(arguments: list, capsys) -> str:
    """What a command writes to standard error when it ends with the exit code of an error."""
    code, error = cli.main([str(argument) for argument in arguments]), capsys.readouterr().err
    assert code == 2 and "Traceback" not in error and len(error) < 2000, error
    return error


@pytest.mark.fault("outputs that cannot be written")
@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "x", "knn", f"data.path={SAMPLE}", "--results", "{tmp}/nowhere/r.jsonl"],
        ["evaluate", "x", "linear", f"data.path={SAMPLE}", "--results", "{tmp}/run"],
        ["evaluate", "x", "knn", f"data.path={SAMPLE}", "--output", "{tmp}/file"],
        ["estimate", "--output", "{tmp}/file/run"],
        ["complementarity", "x", "y", f"data.path={SAMPLE}", "--output", "{tmp}/nowhere/c.png"],
        ["complementarity", "x", "y", f"data.path={SAMPLE}", "--output", "{tmp}/c.exe"],
        ["complementarity", "x", "y", f"data.path={SAMPLE}", "--output", "{tmp}/c.png", "--results", "{tmp}/file/r.jsonl"],
        ["report", "{tmp}/run", "--output", "{tmp}/nowhere/page.html"],
        ["report", "{tmp}/run", "--output", "{tmp}/run"],
        ["convert", "{tmp}/file", "{tmp}/file/out"],
        ["convert", "{tmp}/file", "{tmp}/run"],
    ],
)
def test_outputs_are_refused_before_any_work(arguments, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(frozen_evaluation, "load_encoder", lambda _: pytest.fail("work was done"))
    monkeypatch.setattr("hssl_hf.convert.read_checkpoint", lambda _: pytest.fail("work was done"))
    monkeypatch.setattr("hssl_hf.pretraining.estimate.estimate", lambda *_: pytest.fail("work was done"))
    error = message([argument.format(tmp=tmp_path) for argument in arguments], capsys)
    assert str(tmp_path) in error


@pytest.mark.fault("files that cannot be read")
@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "{tmp}/run"],
        ["export", "{tmp}/file"],
        ["push", "{tmp}/run", "user/name", "--token", TOKEN, "--dry-run"],
        ["report", "{tmp}"],
        ["report", "{tmp}/file"],
        ["replay", "{tmp}/run"],
        ["replay", "{tmp}/nowhere"],
        ["convert", "{tmp}/file", "{tmp}/out"],
        ["convert", "{tmp}/nowhere", "{tmp}/out"],
        ["evaluate", "{tmp}/run", "knn", f"data.path={SAMPLE}"],
        ["evaluate", "{tmp}/file", "knn", f"data.path={SAMPLE}"],
    ],
)
def test_inputs_that_are_no_such_files(arguments, run, tmp_path, capsys):
    assert str(tmp_path) in message([argument.format(tmp=tmp_path) for argument in arguments], capsys)


@pytest.mark.fault("files that cannot be read")
@pytest.mark.parametrize(
    "arguments",
    [["recipes"], ["pretrain"], ["report"], ["export"], ["replay"], ["compare"], ["pretrain", "seed=1", "init_from="]],
)
def test_messages_stay_short_whatever_was_given(arguments, run, tmp_path, capsys):
    *words, last = arguments
    message([*words, last + "n" * 4000] if last.endswith("=") else [*arguments, "n" * 4000], capsys)


@pytest.mark.fault("launchers")
@pytest.mark.parametrize("content", [None, "{", "- 1", "compute_environment: [1"])
def test_options_that_the_launcher_cannot_read(content, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hssl_hf.engine.launcher.STOPPING", ())  # whose handlers are those of this process
    monkeypatch.setenv(LAUNCH_OPTIONS, "")
    (tmp_path / "config.yaml").write_text(content or "")
    options = "'" if content is None else f"--config_file {tmp_path / 'config.yaml'}"
    error = message(["pretrain", "--launch", options], capsys)
    assert ("--launch" if content is None else "accelerate launch refuses") in error


@pytest.mark.fault("files that cannot be read")
def test_a_program_is_no_recipe(capsys):
    assert "/bin/ls" in message(["recipes", "/bin/ls"], capsys)


@pytest.mark.fault("recipe values")
@pytest.mark.parametrize("value", [{1, 2}, b"x", object(), lambda: 0])
def test_values_in_python_that_no_recipe_has(value):
    with refused("optim.epochs: expected texts, numbers"):
        hssl_hf.pretrain(overrides={"optim.epochs": value})


def test_paths_and_numbers_of_numpy_are_values_in_python(monkeypatch):
    recipes = []
    monkeypatch.setattr("hssl_hf.cli.programs.train", lambda recipe, folder, take_over: recipes.append(recipe) or (0, True))
    hssl_hf.pretrain(overrides={"data.path": Path("folder"), "optim.epochs": np.float32(2.5), "optim.batch_size": np.int64(8)})
    assert (recipes[0].data.path, recipes[0].optim.epochs, recipes[0].optim.batch_size) == ("folder", 2.5, 8)


@pytest.mark.fault("recipe values")
@pytest.mark.parametrize("points", ["1", "0", "-3", "1000000"])
def test_numbers_are_refused_before_any_work(points, tmp_path, capsys):
    output = ["--output", tmp_path / "c.png", "--points", points]
    assert "points: expected" in message(["complementarity", "x", "y", f"data.path={SAMPLE}", *output], capsys)


@pytest.mark.fault("full disks")
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/scratch/log.jsonl"),
        OSError(errno.EROFS, "Read-only file system", "/scratch/log.jsonl"),
        PermissionError(errno.EACCES, "Permission denied", "/scratch/log.jsonl"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_errors_of_the_disk_are_messages(error, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr("hssl_hf.cli.commands.all_recipes", fail)
    text = message(["recipes"], capsys)
    assert (getattr(error, "filename", None) or "error: ") in text and error.args[:2][-1] in text


@pytest.mark.fault("secrets")
@pytest.mark.parametrize("kind", [ValueError, RuntimeError, KeyError])
@pytest.mark.parametrize("option", [[], ["--traceback"]])
def test_no_error_shows_a_token(kind, option, monkeypatch, capsys):
    """Such as an HTTP client's about a header; an unexpected error keeps its traceback, without the token."""

    def fail(*_):
        raise kind(f"Illegal header value b'Bearer {TOKEN}\\n'")

    monkeypatch.setattr("hssl_hf.cli.commands.all_recipes", fail)
    assert cli.main([*option, "recipes"]) == 1
    error = capsys.readouterr().err
    assert TOKEN not in error and "Illegal header value" in error and "Traceback" in error


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_paths_are_texts_or_paths(kind, run, tmp_path):
    """Of the functions in Python: each gets as far as to name what it lacks."""
    from hssl_hf.evaluation.records import read_records
    from hssl_hf.pretraining.replay import replay
    from hssl_hf.publish.hub import push
    from hssl_hf.runs.html_report import write_report
    from hssl_hf.runs.metric_logger import read_log

    assert write_report(kind(run), kind(tmp_path / "page.html")).is_file()
    assert read_log(kind(run / "log.jsonl")) == read_records(kind(run / "results.jsonl")) == []
    calls = [
        lambda: hssl_hf.export(kind(run), kind(tmp_path / "out")),
        lambda: hssl_hf.convert_checkpoint(kind(run / "none.pth"), kind(tmp_path / "out")),
        lambda: hssl_hf.evaluate(kind(run), data=kind(SAMPLE), results=kind(tmp_path / "r.jsonl")),
        lambda: push(kind(run), "user/name", token=TOKEN),
        lambda: replay(kind(run)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=str(run)):
            call()
