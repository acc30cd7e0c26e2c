"""Evaluations through the command line: what is recorded beside what, and what is refused or goes on without."""

import json
import resource
from subprocess import CompletedProcess

import pytest
from huggingface_hub import HfApi, constants

from hssl_hf.cli import main as cli
from tests.conftest import SAMPLE, write_stock_backbone
from tests.faults import ends_well
from tests.hub_server.server import OTHER_TOKEN, TOKEN

IMAGES = (f"data.path={SAMPLE}", "data.train_images=300", "data.test_images=50")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_stock_backbone(tmp_path_factory.mktemp("export"))


def test_every_figure_stands_beside_those_of_the_untrained_backbone_and_raw_pixels(folder, tmp_path, capsys):
    arguments = ["evaluate", str(folder), "knn", *IMAGES]
    arguments.append("knn.num_neighbors=[10, 20]")
    assert cli.main([*arguments, "--results", str(tmp_path / "results.jsonl")]) == 0
    assert "k-NN k=20   top1" in capsys.readouterr().out
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    measured = [(r["metric"], r["settings"]["num_neighbors"], r["subject"]) for r in records]
    metrics = [(f"knn_top{k}", number) for number in (10, 20) for k in (1, 5)]
    subjects = (str(folder), "untrained backbone", "raw pixels")
    assert measured == [(*metric, subject) for subject in subjects for metric in metrics]
    assert all(r["interval"][0] < r["value"] < r["interval"][1] for r in records if 2 < r["value"] < 98)
    assert records[0]["dataset"] == "fashion_mnist" and records[0]["value"] < records[8]["value"]
    assert records[0]["settings"]["features"] == "cls"
    linear = ["linear", *IMAGES, "representation.features=patches", "linear.epochs=2"]
    linear.append("linear.learning_rates=[0.1, 0.01]")
    assert cli.main(["evaluate", str(folder), *linear, "--results", str(tmp_path / "linear.jsonl")]) == 0
    record = json.loads((tmp_path / "linear.jsonl").read_text().splitlines()[0])
    assert record["metric"] == "linear_top1" and record["settings"]["learning_rate"] in (0.1, 0.01)
    assert record["settings"]["features"] == "patches" and record["settings"]["epochs"] == 2 and record["n"] == 50
    assert "on held-out training images" in capsys.readouterr().out


def test_raw_pixels_that_would_fill_the_memory_are_left_out(folder, tmp_path, monkeypatch, capsys):
    """350 images of 3 channels and 32 pixels take 4 MiB."""
    command = ["evaluate", str(folder), "knn", *IMAGES]
    monkeypatch.setattr("hssl_hf.experiments.frozen_evaluation.MOST_PIXELS", 3 / 1024)
    assert cli.main([*command, "knn.num_neighbors=[10]", "--results", str(tmp_path / "results.jsonl")]) == 0
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert {json.loads(line)["subject"] for line in lines} == {str(folder), "untrained backbone"}
    assert "raw pixels are not evaluated beside the model: they take 0.004" in capsys.readouterr().err


@pytest.fixture
def gated(hub, folder):
    api = HfApi(token=TOKEN)
    api.create_repo("user/name")
    api.upload_folder(repo_id="user/name", folder_path=folder)
    hub.repository("user/name").gated = True


@pytest.mark.fault("gated repositories")
@pytest.mark.parametrize("token", [None, OTHER_TOKEN, "hf_of_nobody"])
def test_a_gated_backbone_needs_a_token_with_access(gated, token, capsys):
    command = ["evaluate", "user/name", "knn", *IMAGES, "--no-baselines"]
    code = cli.main([*command, *(["--token", token] if token else [])])
    ends_well(CompletedProcess(command, code, stderr=capsys.readouterr().err), "user/name", "hf auth login", "has access")
    assert cli.main([*command, "--token", TOKEN, "knn.num_neighbors=[10]"]) == 0


@pytest.mark.fault("full disks")
def test_a_full_disk_under_the_cache_loses_nothing_but_time(folder, tmp_path, monkeypatch, capsys):
    """A limit of the size of files stands for the disk, reached after part of the features was written."""
    command = ["evaluate", str(folder), "knn", *IMAGES, "knn.num_neighbors=[10]", "--no-baselines"]
    assert cli.main([*command, "extraction.cache=false", "--results", str(tmp_path / "expected.jsonl")]) == 0
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "cache"))
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, most))
    try:
        assert cli.main([*command, "--results", str(tmp_path / "results.jsonl")]) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert "features are not kept" in capsys.readouterr().err
    expected, measured = ((tmp_path / name).read_text().splitlines() for name in ("expected.jsonl", "results.jsonl"))
    assert [json.loads(line)["value"] for line in measured] == [json.loads(line)["value"] for line in expected]
