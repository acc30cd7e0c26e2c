import numpy as np
import pytest
import torch
from transformers import BitImageProcessor

from hssl_hf.data.source import Source, StreamError
from hssl_hf.evaluation import features as features_module
from hssl_hf.evaluation.encoder import raw_pixel_encoder
from hssl_hf.evaluation.features import LabeledImages, extract
from hssl_hf.evaluation.knn import knn_scores
from hssl_hf.evaluation.metrics import TopKAccuracy
from hssl_hf.evaluation.probe import Probe, ProbeConfig
from tests.conftest import SAMPLE
from tests.data.test_decode import ONE, SEVERAL
from tests.data.test_stream import png, write_parquet


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


def processor(size: int) -> BitImageProcessor:
    return BitImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def test_raw_pixels_classify_the_embedded_images_well():
    """1,000 training and 200 test images of the sample: far above the chance of 10 %."""
    probe = Probe(ProbeConfig(path=str(SAMPLE), train_images=1000, test_images=200), processor(28))
    result = probe.knn(raw_pixel_encoder, "k-NN")
    assert result["n"] == 200 and 65 < result["top1"] < 85 < result["top5"]


def test_features_follow_the_order_of_the_images(tmp_path, monkeypatch):
    monkeypatch.setattr(features_module, "BATCH_SIZE", 4)
    images = LabeledImages(Source(str(write_parquet(tmp_path, 9, 2))))
    features, labels = extract(raw_pixel_encoder, processor(4), images)
    assert labels.tolist() == [i % 2 for i in range(9)] and features.shape == (9, 48)
    assert (features[1:, 0] > features[:-1, 0]).all()


def test_missing_labels_and_empty_splits_are_refused(tmp_path):
    path = str(write_parquet(tmp_path, 3, 1))
    with pytest.raises(StreamError, match=r"no column 'klass'; it has \['image', 'label'\]"):
        list(LabeledImages(Source(path, label_column="klass")))
    with pytest.raises(StreamError, match="no images to evaluate on"):
        extract(raw_pixel_encoder, processor(4), LabeledImages(Source(path), limit=0))


@pytest.mark.fault("files with several images")
def test_files_with_several_images_are_named_once(tmp_path, caplog):
    for number, name in enumerate(("TIFF stack", "animated GIF", "PNG", "animated WebP")):
        (tmp_path / str(number % 2)).mkdir(exist_ok=True)
        (tmp_path / str(number % 2) / f"{name}.image").write_bytes({**SEVERAL, **ONE}[name])
    images = LabeledImages(Source(str(tmp_path)))
    assert len(list(images)) == 4 and len(list(images)) == 4
    assert caplog.text.count("the first image is read of 3 files with several images (") == 1
    assert all(f"{name}.image" in caplog.text for name in ("TIFF stack", "animated GIF", "animated WebP"))


def test_images_that_cannot_be_decoded_are_left_out_by_name(tmp_path, caplog):
    for label in "ab":
        (tmp_path / label).mkdir()
        (tmp_path / label / "good.png").write_bytes(png(1))
    (tmp_path / "b" / "broken.png").write_bytes(b"no image")
    assert sorted(label for _, label in LabeledImages(Source(str(tmp_path)))) == [0, 1]
    assert "1 that cannot be decoded" in caplog.text and "b/broken.png" in caplog.text
