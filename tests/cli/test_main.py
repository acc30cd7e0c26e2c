import os
import subprocess
import sys

import pytest

from hssl_hf.cli import main as cli
from hssl_hf.errors import EndedPeerError, UserError
from tests.conftest import ROOT, SAMPLE
from tests.faults import ends_well


def test_help_imports_no_library():
    code = "import sys; from hssl_hf.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pretrain" in done.stdout
    assert not {"'torch'", "'transformers'", "'datasets'", "'numpy'"} & set(done.stdout.replace("[", " ").split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "nowhere/at-all", "knn", f"data.path={SAMPLE}"], "neither an exported folder nor a Hub repository"),
        (["evaluate", "x", "knn"], "name the images to evaluate on"),
        (["evaluate", "x", "knn", "data.pth=x"], "Did you mean 'path'"),
        (["evaluate", "x", "linear", "linear.epoch=3"], "Did you mean 'epochs'"),
        (["export", "nowhere", "out"], "holds no complete checkpoint"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message, capsys):
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_launcher_is_used_on_request_alone(monkeypatch):
    calls = []
    monkeypatch.setattr("hssl_hf.engine.launcher.run_launcher", lambda *arguments: calls.append(arguments) or 75)
    assert cli.main(["pretrain", "--launch", "--multi_gpu --num_processes 2", "recipe.yaml", "seed=1", "--take-over"]) == 75
    assert calls == [(["--multi_gpu", "--num_processes", "2"], ["pretrain", "recipe.yaml", "seed=1", "--take-over"])]
    assert cli.main(["search", "--launch", "--config_file cpu", "--candidates", "vit"]) == 75
    config = str(ROOT / "training" / "accelerate" / "cpu.yaml")
    words = ["search", "--candidates", "vit", "--data-fraction", "0.1", "--depth", "1"]
    assert calls[1] == (["--config_file", config], words)
    assert cli.main(["pretrain", "nowhere.yaml"]) == 2 and len(calls) == 2


@pytest.mark.fault("signals")
def test_ctrl_c_while_the_command_line_is_imported_ends_quietly():
    """The import of typer is where a first second is spent; it is interrupted here."""
    code = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from hssl_hf.__main__ import main
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    ends_well(done, code=130)
    assert not done.stderr


@pytest.mark.fault("broken pipes")
@pytest.mark.parametrize("arguments", [["recipes"], ["recipes", "quickstart"], ["--help"], ["pretrain", "--help"]])
def test_output_that_is_not_read_ends_quietly(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "hssl_hf", *arguments], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    ends_well(done, code=0)
    assert not done.stderr


@pytest.mark.fault("broken pipes")
def test_a_broken_pipe_of_something_else_is_no_success(monkeypatch):
    def broken(*_):
        raise BrokenPipeError(32, "Broken pipe", "of a server")

    monkeypatch.setattr("hssl_hf.cli.commands.all_recipes", broken)
    assert cli.main(["recipes"]) != 0


@pytest.mark.fault("launches")
def test_processes_of_a_launch_report_an_error_once(monkeypatch, capsys, tmp_path):
    """And what follows from the end of another process not at all, unless that has reported nothing."""

    def report(error: UserError, rank: int, launch: str) -> str:
        def fail(*_):
            raise error

        monkeypatch.setattr("hssl_hf.cli.commands.all_recipes", fail)
        (tmp_path / launch).mkdir(exist_ok=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / launch / str(rank) / "error.json"))
        assert cli.main(["recipes"]) == 2
        return capsys.readouterr().err

    monkeypatch.setattr("hssl_hf.cli.console.time.sleep", lambda _: None)
    assert "too large" in report(UserError("too large"), 1, "first")
    assert not report(UserError("too large"), 0, "first") and "too small" in report(UserError("too small"), 0, "first")
    assert not report(EndedPeerError("rank 1 is gone"), 0, "first")
    assert "rank 1 is gone" in report(EndedPeerError("rank 1 is gone"), 0, "second")


def test_recipes_are_listed_with_table_cost_and_number(capsys):
    assert cli.main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    notes = " ".join(lines[lines.index("hssl_mae_vits16") + 1 : lines.index("hssl_moco_v3_cifar10")])
    assert "Table 5" in notes and "fine-tuning top-1 80.8" in notes and "operations" in notes
    assert cli.main(["recipes", "hssl_mae_vits16"]) == 0
    assert "extends:" in capsys.readouterr().out
    assert cli.main(["recipes", "hssl_mae_vit16"]) == 2
    assert "Did you mean hssl_mae_vits16" in capsys.readouterr().err


def test_unknown_public_name():
    import hssl_hf

    with pytest.raises(AttributeError, match="has no attribute 'HSLLConfig'"):
        hssl_hf.HSLLConfig  # noqa: B018
