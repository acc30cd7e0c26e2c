"""The Python functions run the code of the command line."""

import json

import pytest
from safetensors.torch import load_file

import hssl_hf
from hssl_hf.cli import main as cli
from hssl_hf.config.strict_yaml import parse
from hssl_hf.errors import UserError
from tests.conftest import ROOT, SAMPLE, write_stock_backbone
from tests.launches import TINY, losses, weights
from tests.processes import Program

SHORT = {"optim.epochs": 0.0064, "run.logging_steps": 1, "data.num_workers": 0}  # 4 steps


def test_pretrain_and_export_are_the_commands(tmp_path, unchecked):
    overrides = {key: parse(value, key) for key, value in (setting.split("=", 1) for setting in TINY)}
    code = "import json, sys, hssl_hf; print(hssl_hf.pretrain(**json.loads(sys.argv[1])))"
    short = SHORT | {"run.export": False}
    arguments = {"output_dir": str(tmp_path / "python"), "overrides": overrides | short}
    python = Program("-c", code, json.dumps(arguments))
    settings = [*TINY, *(f"{key}={value}" for key, value in short.items()), f"run.output_dir={tmp_path / 'command'}"]
    command = Program(str(ROOT / "training" / "pretrain.py"), *settings)
    output, errors = python.communicate()
    command.communicate()
    assert python.returncode == command.returncode == 0, errors
    assert output.splitlines()[-1] == str(tmp_path / "python")
    ours, theirs = (weights(tmp_path / name, step=4) for name in ("python", "command"))
    assert losses(tmp_path / "python") == losses(tmp_path / "command") and len(losses(tmp_path / "python")) == 4
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert hssl_hf.export(tmp_path / "python") == tmp_path / "python" / "export"
    assert cli.main(["export", str(tmp_path / "command"), str(tmp_path / "command" / "export")]) == 0
    ours, theirs = (load_file(tmp_path / name / "export" / "model.safetensors") for name in ("python", "command"))
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in theirs)


def test_search_heads_is_the_command(monkeypatch):
    """That ends as it does for the command, with the candidates read of its folder."""
    asked = []
    monkeypatch.setattr("hssl_hf.cli.api.search_with", lambda *arguments: asked.append(arguments) or (0, "folder"))
    monkeypatch.setattr("hssl_hf.experiments.head_search.rank", lambda folder: [folder])
    assert hssl_hf.search_heads(overrides={"seed": 3}, candidates=["vit", "swin"], data_fraction=0.5) == ["folder"]
    ((recipe, name, *options),) = asked
    assert (recipe.seed, name, options) == (3, "quickstart", [["vit", "swin"], 0.5, 1])


def test_images_of_the_user_replace_those_of_the_recipe_and_leave_its_probe_out(monkeypatch):
    recipes = []
    monkeypatch.setattr("hssl_hf.cli.programs.train", lambda recipe, folder, take_over: recipes.append(recipe) or (0, True))
    assert str(hssl_hf.pretrain("hssl_dino_cifar10", data="user/photographs")) == "runs/hssl_dino_cifar10"
    hssl_hf.pretrain(data="user/photographs", overrides={"probe.path": "user/labeled", "optim.base_learning_rate": 1e-5})
    assert [recipe.data.path for recipe in recipes] == ["user/photographs"] * 2
    assert [recipe.probe.path for recipe in recipes] == [None, "user/labeled"] and recipes[1].optim.base_learning_rate == 1e-5
    with pytest.raises(UserError, match="Did you mean quickstart"):
        hssl_hf.pretrain("quikstart")


def test_a_signal_ends_the_program(monkeypatch):
    monkeypatch.setattr("hssl_hf.cli.programs.train", lambda recipe, folder, take_over: (75, True))
    with pytest.raises(SystemExit) as exit:
        hssl_hf.pretrain()
    assert exit.value.code == 75


def test_evaluate_is_the_command(tmp_path, capsys):
    write_stock_backbone(tmp_path)
    images = {"data.train_images": 200, "data.test_images": 50}
    records = hssl_hf.evaluate(tmp_path, data=SAMPLE, overrides=images, results=tmp_path / "results.jsonl")
    assert {record.n for record in records} == {50} and (tmp_path / "results.jsonl").is_file()
    settings = [f"data.path={SAMPLE}", *(f"{key}={value}" for key, value in images.items())]
    assert cli.main(["evaluate", str(tmp_path), "knn", *settings]) == 0
    assert f"k-NN k=10   top1  {records[0].value:.2f} %" in capsys.readouterr().out
    with pytest.raises(UserError, match="expected a protocol"):
        hssl_hf.evaluate(tmp_path, "k-NN", data=SAMPLE)
