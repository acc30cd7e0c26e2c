import json
import os
import subprocess
import sys

import pytest

from hssl_hf.cli import main as cli
from tests.conftest import ROOT, SAMPLE, tiny_model


def test_help_imports_no_library():
    code = "import sys; from hssl_hf.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pretrain" in done.stdout
    assert not {"'torch'", "'transformers'", "'datasets'", "'numpy'"} & set(done.stdout.replace("[", " ").split())


def test_naming_the_package_imports_no_library_and_registers_late():
    code = """
import sys, hssl_hf
assert not {"torch", "transformers"} & set(sys.modules)
hssl_hf.HSSLConfig
from transformers import AutoConfig
AutoConfig.for_model("hssl")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_evaluate(tmp_path, capsys):
    from hssl_hf.publish.image_processor import image_processor
    from hssl_hf.publish.to_transformers import to_transformers

    folder = tmp_path / "export"
    to_transformers(tiny_model().teacher.base, 32).save_pretrained(folder)
    image_processor(32).save_pretrained(folder)
    arguments = ["evaluate", str(folder), "knn", f"data.path={SAMPLE}", "data.train_images=300", "data.test_images=50"]
    assert cli.main([*arguments, "--results", str(tmp_path / "results.jsonl")]) == 0
    assert "k-NN top1" in capsys.readouterr().out
    assert cli.main([*arguments, "--pixels", "--results", str(tmp_path / "results.jsonl")]) == 0
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(r["metric"], r["subject"]) for r in records] == [
        ("knn_top1", str(folder)), ("knn_top5", str(folder)), ("knn_top1", "raw pixels"), ("knn_top5", "raw pixels"),
    ]  # fmt: skip
    assert records[0]["dataset"] == "fashion_mnist" and records[0]["value"] < records[2]["value"]
    assert records[0]["settings"]["features"] == "cls"
    linear = ["linear", *arguments[3:], "data.features=patches", "linear.epochs=2", "linear.learning_rates=[0.1, 0.01]"]
    assert cli.main(["evaluate", str(folder), *linear, "--results", str(tmp_path / "linear.jsonl")]) == 0
    record = json.loads((tmp_path / "linear.jsonl").read_text().splitlines()[0])
    assert record["metric"] == "linear_top1" and record["settings"]["learning_rate"] in (0.1, 0.01)
    assert record["settings"]["features"] == "patches" and record["settings"]["epochs"] == 2 and record["n"] == 50
    assert "on held-out training images" in capsys.readouterr().out


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


def test_pretrain_runs_accelerate(monkeypatch):
    command = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: command.extend(arguments))
    cli.main(["pretrain", "--launch", "--multi_gpu --num_processes 2", "recipe.yaml", "seed=1"])
    assert command[3:] == [
        "launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "-m",
        "hssl_hf",
        "pretrain",
        "recipe.yaml",
        "seed=1",
    ]
    del command[:]
    cli.main(["search", "--launch", "--config_file cpu"])
    assert command[5] == str(ROOT / "training" / "accelerate" / "cpu.yaml") and command[6:9] == ["-m", "hssl_hf", "search"]


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
