"""The wheel alone, outside of any checkout, with the recipes, configurations and images that it brings."""

import json
import os
import subprocess
import sys
import sysconfig
import venv

import pytest

from tests.conftest import ROOT, SAMPLE
from tests.launches import TINY, losses, weights
from tests.processes import free_port

pytestmark = pytest.mark.slow
SHORT = [*TINY, "optim.epochs=0.0064", "data.num_workers=0"]  # 4 steps


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Run a program of an environment that has the wheel, and beside it the libraries of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)], check=True)
    venv.create(folder / "venv")
    python, (wheel,) = folder / "venv" / "bin" / "python", folder.glob("*.whl")
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], check=True)
    (site_packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (site_packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))  # without the .pth files in it

    def run(program: str, *arguments: object) -> str:
        words = (
            [str(python), *map(str, arguments)]
            if program == "python"
            else [str(python.with_name(program)), *map(str, arguments)]
        )
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.folder = folder
    return run


def test_every_command_works_without_a_checkout(command, tmp_path):
    assert str(ROOT) not in command("python", "-c", "import hssl_hf; print(hssl_hf.__file__)")
    assert "hssl_dino_cifar10\n" in command("hssl-hf", "recipes")
    assert "Load it anywhere" in command("hssl-hf", "pretrain", *SHORT)
    run = command.folder / "runs" / "quickstart"
    evaluated = command(
        "hssl-hf", "evaluate", run / "export", "knn", f"data.path={SAMPLE}", "data.train_images=200", "data.test_images=50"
    )
    assert "k-NN k=20   top1" in evaluated
    assert "images per second" in command("hssl-hf", "estimate", *SHORT, "--engine", "single")
    assert str(tmp_path / "timm") in command("hssl-hf", "export", run, tmp_path / "timm", "--kind", "timm")
    assert "would be uploaded" in command("hssl-hf", "push", run, "user/name", "--dry-run")
    assert "report.html" in command("hssl-hf", "report", run)
    searched = command("hssl-hf", "search", *SHORT, "optim.epochs=0.05", "--candidates", "convnext", "--candidates", "resmlp")
    assert "1. " in searched and (command.folder / "runs" / "search-quickstart" / "winner.yaml").is_file()


def test_launching_the_module_equals_launching_the_script(command, tmp_path):
    launch = ["-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "1"]
    command("python", *launch, "-m", "hssl_hf", "pretrain", *SHORT, f"run.output_dir={tmp_path / 'module'}", "run.export=false")
    script = [
        *launch,
        str(ROOT / "training" / "pretrain.py"),
        *SHORT,
        f"run.output_dir={tmp_path / 'script'}",
        "run.export=false",
    ]
    subprocess.run([sys.executable, *script], cwd=tmp_path, capture_output=True, check=True)
    ours, theirs = (weights(tmp_path / name, step=4) for name in ("module", "script"))
    assert len(losses(tmp_path / "module")) == 4 and losses(tmp_path / "module") == losses(tmp_path / "script")
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


def test_processes_are_launched_by_the_name_of_a_configuration(command, tmp_path):
    launch = f"--config_file cpu --num_processes 2 --main_process_port {free_port()}"
    folder = tmp_path / "run"
    command("hssl-hf", "pretrain", *SHORT, f"run.output_dir={folder}", "run.export=false", "--launch", launch)
    assert json.loads((folder / "manifest.json").read_text())["processes"] == 2 and len(losses(folder)) == 4
