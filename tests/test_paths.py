"""Folders of any name: spaces, umlauts, brackets, quotes, a leading dash and an equals sign."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from hssl_hf.cli.programs import split_settings
from hssl_hf.runs.run_lock import read_status
from tests.conftest import ROOT
from tests.data.test_image_folder import fill, in_each
from tests.launches import TINY

ODD = ["-a b", "ü[1]{2..3}", 'it\'s "so"', "x=y,z;$HOME & (1)"]
TWO_STEPS = [setting for setting in TINY if not setting.startswith(("optim.epochs", "probe."))]
TWO_STEPS += ["optim.batch_size=8", "optim.epochs=1", "optim.warmup_epochs=0", "data.num_workers=1"]
TWO_STEPS += ["probe.train_images=40", "probe.test_images=20"]


@pytest.mark.slow
@pytest.mark.fault("paths")
@pytest.mark.parametrize(("program", "output"), [(["training/pretrain.py"], "-é='1'"), (["-m", "hssl_hf", "pretrain"], "")])
def test_a_checkout_in_a_folder_of_any_name_trains_exports_and_reports(tmp_path, program, output):
    """With the probe's images from the checkout itself; the run goes to a relative path, or to an absolute one."""
    checkout = tmp_path.joinpath(*ODD)
    for folder in ("src", "training", "model_cards"):
        shutil.copytree(ROOT / folder, checkout / folder, ignore=shutil.ignore_patterns("__pycache__"))
    fill(checkout / "-images [ü] 'x=1'", *in_each("a b", "ü", count=8))
    recipe = (checkout / "training" / "recipes" / "quickstart.yaml").rename(checkout / "training" / "recipes" / "a=b [c].yaml")
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}

    def run(*words: str) -> str:
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    output = output or str(tmp_path / "-run é='1' [x]")
    settings = [*TWO_STEPS, "data.path=-images [ü] 'x=1'", f"run.output_dir={output}"]
    assert "pre-trained backbone" in run(*program, str(recipe), *settings)
    folder = checkout / output
    assert json.loads((folder / "manifest.json").read_text())["steps"] == 2 and read_status(folder)["state"] == "finished"
    assert load_file(folder / "export" / "model.safetensors")
    assert "report.html" in run("-m", "hssl_hf", "report", str(folder))


@pytest.mark.fault("paths")
@pytest.mark.parametrize("name", ["x=y.yaml", "[1] a=b/c.yaml", "-a=b/ü 'x'.yaml", 'it\'s="so".yaml'])
def test_a_recipe_is_a_file_also_with_an_equals_sign_in_its_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert split_settings([name, "a.b=c"]) == ([], [name, "a.b=c"])
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("seed: 3\n")
    for given in (name, str(path)):
        assert split_settings([given, "a.b=c", "x" * 5000 + "=1"]) == ([given], ["a.b=c", "x" * 5000 + "=1"])
