"""What base, head and baseline solve: the sets of the paper, image by image."""

import torch

from hssl_hf.evaluation.metrics import SolvedIoU, SolvedSamples, complementary_counts

WRONG = 9
LABELS = [0, 1, 2, 3, 4, 5, 6]


def classes(*solved: int) -> list[int]:
    """Predictions that are right for these images alone."""
    return [label if label in solved else WRONG for label in LABELS]


def metrics(base, baseline, auxiliary, labels) -> tuple[int, float | None]:
    inputs = {"baseline": baseline, "auxiliary": auxiliary, "references": labels}
    solved = SolvedSamples(keep_in_memory=True).compute(**inputs)["N_s"]
    return solved, SolvedIoU(keep_in_memory=True).compute(base=base, **inputs)["sIoU"]


def test_the_head_is_compared_with_the_baseline_and_not_with_its_own_base():
    """B1 = {0, 1}, B2 = {0, 2, 3, 4}, H = {1, 2, 4, 5}: H - B1 = {2, 4, 5}; of the gained {2, 3, 4} the head solves {2, 4}."""
    assert metrics(classes(0, 2, 3, 4), classes(0, 1), classes(1, 2, 4, 5), LABELS) == (3, 2 / 3)


def test_a_base_that_gains_nothing_has_no_overlap():
    assert metrics(classes(0), classes(0, 1), classes(1, 2), LABELS) == (1, None)


def test_two_networks_are_counted_apart_and_together():
    first, second, labels = map(torch.tensor, (classes(0, 1, 2), classes(2, 3), LABELS))
    assert complementary_counts(first, second, labels) == {"only_first": 2, "only_second": 1, "both": 1}
