import numpy as np
import pytest
import torch

from hssl_hf.evaluation.encoder import raw_pixel_encoder
from hssl_hf.evaluation.knn import KNNConfig, knn_accuracy, knn_scores
from hssl_hf.evaluation.metrics import TopKAccuracy
from hssl_hf.evaluation.probe import Probe, ProbeConfig
from tests.conftest import SAMPLE
from tests.evaluation.extractors import accelerator, processor
from tests.evaluation.feature_sets import feature_set


@pytest.mark.parametrize("num_neighbors", [10, 20, 100])
def test_equals_the_official_classifier(golden, num_neighbors):
    """Weighted k-NN of iBOT's code, T = .07, 400 training and 200 test features: top-1 and top-5 in percent."""
    arrays = golden("base_methods")
    load = lambda name: torch.from_numpy(arrays[f"knn/{name}"])  # noqa: E731
    scores = knn_scores(load("train"), load("ytrain"), load("test"), num_neighbors, 0.07)
    accuracy = TopKAccuracy(keep_in_memory=True).compute(predictions=scores.numpy(), references=load("ytest").numpy())
    np.testing.assert_allclose([accuracy["top1"], accuracy["top5"]], arrays[f"knn/top1_top5_k{num_neighbors}"])


@pytest.mark.parametrize(("num_neighbors", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5)])
def test_every_neighbor_votes_with_the_exponential_of_its_similarity(num_neighbors, temperature):
    """Section 3.4 of arXiv 1805.01978, image by image: w = exp(cosine / T) over the k nearest, relative to the nearest."""
    rng = np.random.default_rng(num_neighbors)
    train, test, labels = rng.normal(size=(40, 6)), rng.normal(size=(9, 6)), rng.integers(0, 4, 40)
    expected = np.zeros((9, 4))
    for image, feature in enumerate(test):
        cosine = train @ feature / np.linalg.norm(train, axis=1) / np.linalg.norm(feature)
        nearest = sorted(range(40), key=lambda other: -cosine[other])[:num_neighbors]
        for other in nearest:
            expected[image, labels[other]] += np.exp((cosine[other] - cosine[nearest[0]]) / temperature)
    scores = knn_scores(*map(torch.from_numpy, (train, labels, test)), num_neighbors, temperature)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)


def test_nearest_wins_over_many_far_ones():
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
    scores = knn_scores(train, torch.tensor([1, 0, 0]), torch.tensor([[1.0, 0.05]]), num_neighbors=3, temperature=0.07)
    assert scores.argmax() == 1 and scores.shape == (1, 2)
    flat = knn_scores(train, torch.tensor([1, 0, 0]), torch.tensor([[1.0, 0.05]]), num_neighbors=3, temperature=100.0)
    assert flat.argmax() == 0, "without a temperature the two far ones outvote it"


def test_length_of_features_and_chunks_do_not_matter():
    train, test = torch.randn(30, 5), torch.randn(12, 5)
    labels = torch.arange(30) % 3
    expected = knn_scores(train, labels, test, 7)
    torch.testing.assert_close(knn_scores(3 * train, labels, 9 * test, 7, chunk=5), expected, rtol=1e-4, atol=1e-4)


def test_metric_counts_the_k_best():
    metric = TopKAccuracy(keep_in_memory=True)
    scores = [[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.4, 0.4, 0.2]]
    assert metric.compute(predictions=scores, references=[1, 1, 0, 0], ks=(1, 2)) == {"top1": 50.0, "top2": 75.0}


def test_raw_pixels_classify_the_embedded_images_well():
    """1,000 training and 200 test images of the sample: far above the chance of 10 %."""
    probe = Probe(ProbeConfig(path=str(SAMPLE), train_images=1000, test_images=200), processor(28), accelerator())
    result = probe.classify(raw_pixel_encoder, "k-NN")["knn_top1"]
    assert len(result) == 200 and 65 < result.accuracy(1) < 85 < result.accuracy(5)


def test_several_numbers_of_neighbors_at_once_are_those_one_by_one():
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(60, 6, generator=generator), torch.randn(25, 6, generator=generator)
    splits = feature_set(train, torch.arange(60) % 7), feature_set(test, torch.arange(25) % 7)
    results = knn_accuracy(accelerator(), *splits, KNNConfig((1, 5, 20)))
    for number, result in results.items():
        scores = knn_scores(train, splits[0].labels, test, number)
        top = TopKAccuracy(keep_in_memory=True).compute(predictions=scores, references=splits[1].labels)
        assert {"top1": result.accuracy(1), "top5": result.accuracy(5)} == pytest.approx(top)
        assert torch.equal(result.ranking[:, 0], scores.argmax(1))
        torch.testing.assert_close(result.confidence, scores.amax(1) / scores.sum(1))
