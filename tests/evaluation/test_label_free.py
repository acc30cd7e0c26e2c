"""Measures without labels, written out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hssl_hf.cli.main import main
from hssl_hf.evaluation.label_free import LabelFreeConfig, alignment, rank_me, uniformity
from hssl_hf.evaluation.metrics import Alignment, RankMe, Uniformity
from hssl_hf.evaluation.records import read_records
from hssl_hf.publish.export import export_backbone
from tests.conftest import tiny_model
from tests.data.test_stream import png
from tests.faults import refused


@given(st.integers(2, 30), st.integers(1, 12), st.integers(0, 99))
def test_rank_me_is_the_exponential_of_an_entropy(images, width, seed):
    features = np.random.default_rng(seed).normal(size=(images, width))
    values = np.sqrt(np.linalg.eigvalsh(features.T @ features).clip(0))
    fractions = values / values.sum() + 1e-7
    expected = np.exp(-(fractions * np.log(fractions)).sum())
    assert rank_me(torch.from_numpy(features)) == pytest.approx(expected, rel=1e-4)
    assert 0.99 < rank_me(torch.from_numpy(features)) <= min(images, width) + 0.01


def test_rank_me_counts_the_dimensions_in_use():
    assert rank_me(torch.eye(8)) == pytest.approx(8, rel=1e-4)
    assert rank_me(torch.ones(50, 8)) == pytest.approx(1, rel=1e-4)


def test_alignment_and_uniformity_pair_by_pair():
    """Section 4.2 of arXiv 2005.10242: means over images, and over pairs of different images."""
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 9, 4))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second)]
    expected = np.mean([np.linalg.norm(a - b) ** 2 for a, b in zip(*unit, strict=True)])
    assert alignment(torch.from_numpy(first), torch.from_numpy(3 * second)) == pytest.approx(expected)
    pairs = [np.exp(-2 * np.linalg.norm(a - b) ** 2) for i, a in enumerate(unit[0]) for b in unit[0][i + 1 :]]
    assert uniformity(torch.from_numpy(5 * first)) == pytest.approx(np.log(np.mean(pairs)), rel=1e-5)
    assert alignment(torch.from_numpy(first), torch.from_numpy(first)) == 0


def test_measures_are_metrics_of_evaluate():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 20, 5, generator=generator)
    values = {
        **RankMe(keep_in_memory=True).compute(predictions=first),
        **Alignment(keep_in_memory=True).compute(predictions=first, references=second),
        **Uniformity(keep_in_memory=True).compute(predictions=first),
    }
    expected = {"rank_me": rank_me(first), "alignment": alignment(first, second), "uniformity": uniformity(first)}
    assert values == pytest.approx(expected, rel=1e-5)


@pytest.mark.fault("figures that mean nothing")
def test_features_that_have_no_measure():
    with refused("at least 2 images"):
        rank_me(torch.ones(1, 4))
    with refused("at least 2 images"):
        uniformity(torch.ones(1, 4))
    with refused("all features are zero"):
        rank_me(torch.zeros(5, 4))
    with refused("images", "expected"):
        LabelFreeConfig(images=1)


def test_through_the_command_line_without_labels(tmp_path, unchecked, capsys):
    """A folder of images without classes."""
    folder = export_backbone(tiny_model(), tmp_path / "export")
    (tmp_path / "images").mkdir()
    for number in range(24):
        (tmp_path / "images" / f"{number}.png").write_bytes(png(10 * number))
    command = ["evaluate", str(folder), "label_free", f"data.path={tmp_path / 'images'}", "data.test_split=all"]
    assert main([*command, "extraction.num_workers=0", "--no-baselines", "--results", str(tmp_path / "r.jsonl")]) == 0
    records = {record["metric"]: record for record in read_records(tmp_path / "r.jsonl")}
    assert set(records) == {f"label_free_{name}" for name in ("rank_me", "alignment", "uniformity")}
    assert 1 <= records["label_free_rank_me"]["value"] <= 24 and records["label_free_uniformity"]["value"] <= 0
    assert 0 <= records["label_free_alignment"]["value"] < 1 and {record["n"] for record in records.values()} == {24}
    assert "label-free rank me" in capsys.readouterr().out
    assert main(["cache"]) == 0 and "images all" in capsys.readouterr().out
    assert main(["cache", "--clear"]) == 0 and main(["cache"]) == 0
    assert "0.00 GiB in" in capsys.readouterr().out.splitlines()[-1]
