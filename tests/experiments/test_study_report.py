"""Tables and plots from records, and from nothing else."""

import statistics

import pytest

from hssl_hf.experiments.study import PIXELS, UNTRAINED, Study
from hssl_hf.experiments.study_report import Findings, draw, interval, rank_table, spearman, table

HEADS = ("vit", "swin", "resmlp")
STUDY = Study(
    recipe="a.yaml", baseline="plain", variants={name: [] for name in ("plain", *HEADS)}, seeds=(0, 1), heads=HEADS,
    searches={"search": 0.1, "long search": 0.5},
)  # fmt: skip


def record(metric: str, subject: str, seed: int, value: float, **settings) -> dict:
    return {"metric": metric, "subject": subject, "seed": seed, "value": value, "settings": settings}


def records() -> list[dict]:
    lines = [record("knn_top1", PIXELS, 0, 45.0)]
    lines += [record("knn_top1", UNTRAINED, 0, 30.0), record("knn_top1", UNTRAINED, 1, 31.0)]
    for seed in (0, 1):
        lines.append(record("knn_top1", "plain", seed, 40.0 + seed))
        for index, head in enumerate(STUDY.heads):
            lines.append(record("knn_top1", head, seed, 41.0 + 2 * seed + index))
            lines.append(record("discrepancy", head, seed, 0.1 * (index + 1)))
            lines.append(record("search_discrepancy", "search", seed, (1.0, 2.0, 3.0)[index] * (1 if seed else -1), head=head))
            lines.append(record("search_discrepancy", "long search", seed, (1.0, 3.0, 2.0)[index], head=head))
    return lines


def test_gains_are_paired_by_seed():
    findings = Findings(STUDY, records())
    assert findings.gains("vit") == {0: 1.0, 1: 2.0}
    unpaired = [r for r in records() if not (r["subject"] == "plain" and r["seed"] == 1)]
    assert Findings(STUDY, unpaired).gains("vit") == {0: 1.0}, "a seed that the baseline lacks makes no pair"


def test_rank_correlation_is_that_of_the_ranks():
    assert spearman([1, 2, 3, 4], [10, 200, 3000, 40000]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(1 - 6 * 2 / (4 * 15)), "1 - 6 sum d² / (n (n² - 1))"
    lines = rank_table(Findings(STUDY, records()))
    assert lines[2:] == [
        "| D of the single runs | – | +1.00, +1.00 [+1.00, +1.00] |",
        "| D in the search | -1.00, +1.00 [-1.00, +1.00] | -1.00, +1.00 [-1.00, +1.00] |",
        "| D in the long search | +0.50, +0.50 [+0.50, +0.50] | +0.50, +0.50 [+0.50, +0.50] |",
    ]
    lacking = [r for r in records() if (r["metric"], r["subject"], r["seed"]) != ("discrepancy", "swin", 0)]
    lines = rank_table(Findings(STUDY, lacking))
    assert lines[2] == "| D of the single runs | – | +1.00 |", "a seed that lacks a head has no rank"


@pytest.mark.parametrize(("values", "t"), [([1, 2], 12.706), ([3, 1, 5], 4.303), ([4, 1, 2, 7], 3.182), (range(10), 2.262)])
def test_intervals_are_those_of_student(values, t):
    """The two-sided 95 % points of Student's t with 1, 2, 3 and 9 degrees of freedom, from the usual tables."""
    low, high = interval(values)
    half = t * statistics.stdev(values) / len(values) ** 0.5
    assert (low, high) == pytest.approx((statistics.mean(values) - half, statistics.mean(values) + half), abs=2e-3 * half)


def test_the_table_has_what_was_measured(tmp_path):
    lines = table(Findings(STUDY, records()))
    assert lines[2].startswith("| raw pixels | 45.00 | 45.00 | – |") and lines[3].startswith("| untrained base | 30.50 |")
    assert lines[4].startswith("| plain | 40.50 | 40.00, 41.00 | – |")
    assert lines[5].startswith("| vit | 42.00 | 41.00, 43.00 | +1.50 [-4.85, +7.85] | 0.100 | – | – | – |")
    begun = Findings(STUDY, records()[:4])
    assert len(table(begun)) == 5 and rank_table(begun) == []
    (tmp_path / "private.png").write_text("private")
    (tmp_path / "1.png").symlink_to(tmp_path / "private.png")
    for number, findings in enumerate((begun, Findings(STUDY, records()))):
        draw(findings, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 10_000
    assert (tmp_path / "private.png").read_text() == "private"
