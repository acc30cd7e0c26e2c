"""Accuracies, and how sure they are."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hssl_hf.evaluation.classification import Classification, accuracy_interval, bootstrap_interval, rank_classes


def test_accuracies_count_the_k_best():
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.4, 0.4, 0.2]])
    ranking, confidence = rank_classes(scores, torch.full((4,), 2.0))
    result = Classification(ranking, confidence, torch.tensor([1, 1, 0, 0]))
    assert result.accuracy(1) == 50 and result.accuracy(2) == 75 and len(result) == 4, "of equal classes the first counts"
    assert confidence.tolist() == pytest.approx([0.35, 0.25, 0.25, 0.2])


def test_an_interval_is_that_of_drawing_images_again():
    """Image by image with replacement, as Efron and Tibshirani define it; both by 2,000 draws."""
    generator = np.random.default_rng(7)
    values = generator.normal(size=80)
    means = [values[generator.integers(0, 80, 80)].mean() for _ in range(2000)]
    low, high = bootstrap_interval(values)
    np.testing.assert_allclose([low, high], np.quantile(means, [0.025, 0.975]), atol=0.02)
    assert bootstrap_interval(values) == (low, high), "the draws are always the same"


@given(st.integers(1, 400), st.data())
def test_an_accuracy_and_a_number_of_images_are_enough(images, data):
    right = data.draw(st.integers(0, images))
    labels = torch.arange(images) % 2
    ranking = torch.where(torch.arange(images) < right, labels, 1 - labels)[:, None]
    result = Classification(ranking, torch.ones(images), labels)
    low, high = accuracy_interval(result.accuracy(), images)
    assert (low, high) == result.interval() and 0 <= low <= result.accuracy() <= high <= 100
