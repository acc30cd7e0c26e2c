"""Linear combinations of two frozen backbones."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hssl_hf.cli.main import main
from hssl_hf.evaluation.complementarity import FORMATS, combine, complementarity, draw
from hssl_hf.evaluation.knn import knn_scores
from hssl_hf.evaluation.splits import Splits
from hssl_hf.publish.export import export_backbone
from tests.conftest import SAMPLE, tiny_model
from tests.evaluation.feature_sets import feature_set


@given(st.integers(0, 99), st.floats(0, 1))
def test_similarities_are_added(seed, alpha):
    """The cosine of combined features is the weighted sum of the cosines, whatever the lengths."""
    generator = torch.Generator().manual_seed(seed)
    a, b = 3 * torch.randn(2, 5, generator=generator), 0.1 * torch.randn(2, 9, generator=generator)
    combined = combine(a, b, alpha)
    expected = alpha * F.cosine_similarity(a[:1], a[1:]) + (1 - alpha) * F.cosine_similarity(b[:1], b[1:])
    torch.testing.assert_close(F.cosine_similarity(combined[:1], combined[1:]), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(combined.norm(dim=1), torch.ones(2))


def halves(features: torch.Tensor, labels: torch.Tensor) -> Splits:
    """Training and test images."""
    return Splits(*(feature_set(*half) for half in zip(features.chunk(2), labels.chunk(2), strict=True)))


def test_ends_of_the_curve_are_the_single_backbones_and_the_middle_is_better():
    """One sees the first bit of the class alone, the other the second: half right apart, all right together."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    noise = 0.05 * torch.randn(2, 400, 2, generator=generator)
    first, second = F.one_hot(labels // 2, 2) + noise[0], F.one_hot(labels % 2, 2) + noise[1]
    curve, counts = complementarity(halves(first, labels), halves(second, labels), points=5)
    curve = dict(curve)
    for alpha, features in ((1.0, first), (0.0, second)):
        alone = knn_scores(features[:200], labels[:200], features[200:]).argmax(1)
        assert curve[alpha] == pytest.approx(100 * (alone == labels[200:]).float().mean().item())
    assert max(curve[0.0], curve[1.0]) < 65 and curve[0.5] > 99
    alone = {"only_first": curve[1.0], "only_second": curve[0.0]}
    for name, accuracy in alone.items():
        assert counts[name] > 20 and counts[name] + counts["both"] == round(2 * accuracy), "of 200 images"


def test_a_backbone_with_itself_gains_nothing():
    splits = halves(torch.randn(60, 8, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 3)
    curve, counts = complementarity(splits, splits, points=3)
    assert len({accuracy for _, accuracy in curve}) == 1 and counts["only_first"] == counts["only_second"] == 0
    with pytest.raises(ValueError, match="points: expected a whole number from 2 to 1001, got 1"):
        complementarity(splits, splits, points=1)


@pytest.mark.fault("links in a run")
@pytest.mark.parametrize("ending", FORMATS)
def test_a_curve_is_not_drawn_through_a_link(tmp_path, ending):
    (tmp_path / "private").write_text("private")
    path = tmp_path / f"curve.{ending}"
    path.symlink_to(tmp_path / "private")
    draw([(0.0, 10.0), (1.0, 20.0)], ("a", "b"), path)
    assert (tmp_path / "private").read_text() == "private" and path.stat().st_size > 5_000 and not path.is_symlink()


def test_through_the_command_line(tmp_path, unchecked, capsys):
    for seed, name in ((0, "a"), (1, "b")):
        export_backbone(tiny_model(seed, image_size=32), tmp_path / name)
    data = [f"data.path={SAMPLE}", "data.train_images=200", "data.test_images=100"]
    command = ["complementarity", str(tmp_path / "a"), str(tmp_path / "b"), *data, "--points", "3"]
    command += ["--output", str(tmp_path / "c.png")]
    assert main([*command, "--results", str(tmp_path / "r.jsonl")]) == 0
    shown = capsys.readouterr().out
    assert f"classified right by {tmp_path / 'a'} alone" in shown and (tmp_path / "c.png").stat().st_size > 5_000
    records = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [record["settings"]["alpha"] for record in records if record["metric"] == "knn_top1"] == [0.0, 0.5, 1.0]
    counts = {"knn_right_only_first", "knn_right_only_second", "knn_right_both"}
    assert {record["metric"] for record in records} == {"knn_top1", *counts} and records[0]["n"] == 100
    shutil.rmtree(tmp_path / "b")
    assert main(command) == 2 and f"there is no folder {str(tmp_path / 'b')!r}" in capsys.readouterr().err
