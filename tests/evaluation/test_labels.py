"""Accuracies that would mean nothing are refused: labels that are no classes, splits that do not go together."""

import datasets
import numpy as np
import pytest
import torch

from hssl_hf.data.source import Source
from hssl_hf.evaluation.encoder import raw_pixel_encoder
from hssl_hf.evaluation.features import LabeledImages, extract
from hssl_hf.evaluation.knn import knn_scores
from hssl_hf.evaluation.labels import class_of, require_comparable
from hssl_hf.evaluation.linear import LinearConfig
from hssl_hf.evaluation.probe import Probe, ProbeConfig
from tests.conftest import SAMPLE
from tests.data.test_stream import png
from tests.evaluation.test_knn import processor
from tests.faults import refused

SOURCE = Source("folder", split="test")


def write(folder, split: str, labels: list, first: int = 0, kind=None):
    """Images of different grays with these labels as a split of a folder of parquet files."""
    images = [{"bytes": png(first + index), "path": f"{index}.png"} for index in range(len(labels))]
    dataset = datasets.Dataset.from_dict({"label": labels}).add_column("image", images).cast_column("image", datasets.Image())
    dataset = dataset if kind is None else dataset.cast_column("label", kind)
    folder.mkdir(exist_ok=True)
    dataset.to_parquet(folder / f"{split}-0.parquet")
    return folder


@pytest.mark.fault("labels")
@pytest.mark.parametrize(
    "label", [-1, None, [1], [0, 1, 0], [[1]], 1.0, 0.5, float("nan"), "1", "cat", True, b"1", {"id": 1}, 10**9, np.float32(1)]
)
def test_values_that_are_no_classes(label):
    with refused("'a.png'", "expected an integer class from 0"):
        class_of(label, "a.png", SOURCE)


@pytest.mark.parametrize("label", [0, 7, np.int64(7), np.uint8(7), 99_999])
def test_integers_are_classes(label):
    assert class_of(label, "a.png", SOURCE) == label and type(class_of(label, None, SOURCE)) is int


@pytest.mark.fault("labels")
@pytest.mark.parametrize(
    ("labels", "word"),
    [
        ([-1] * 3, "-1"),
        ([0, None, 1], "None"),
        ([[0, 1]] * 3, "List"),
        ([0.0, 1.0, 2.5], "float"),
        (["a", "b", "c"], "string"),
        ([[[1]]] * 3, "List"),
        ([0, 1, -1], "-1"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_of_a_dataset(labels, word, split, tmp_path):
    write(tmp_path / "data", split, labels)
    write(tmp_path / "data", "test" if split == "train" else "train", [0, 1, 2])
    probe = Probe(ProbeConfig(path=str(tmp_path / "data")), processor(4))
    for measure in (
        lambda: probe.knn(raw_pixel_encoder, "k-NN"),
        lambda: probe.linear(raw_pixel_encoder, LinearConfig(epochs=1), ""),
    ):
        with refused(word, "expected"):
            measure()


@pytest.mark.fault("labels")
def test_a_column_of_another_type(tmp_path):
    images = LabeledImages(Source(str(write(tmp_path / "data", "train", [True, False, True]))))
    with refused("'label'", "bool", "expected one integer per image"):
        list(images)


@pytest.mark.fault("labels")
@pytest.mark.parametrize(
    ("train", "test", "word"),
    [([3, 3, 3], [3, 4], "the label 3"), ([0, 1], [2, 3], "none of the 2 test images"), ([5], [5], "the label 5")],
)
def test_splits_that_cannot_be_compared(train, test, word):
    with refused(word):
        require_comparable(torch.tensor(train), torch.tensor(test))


def test_classes_without_training_images_are_counted(caplog):
    require_comparable(torch.tensor([0, 1]), torch.tensor([0, 1, 1]))
    assert not caplog.text
    require_comparable(torch.tensor([0, 1]), torch.tensor([0, 7, 9]))
    assert "2 of 3 test images" in caplog.text


@pytest.mark.fault("figures that mean nothing")
@pytest.mark.parametrize("splits", ["one split", "two with the same images"])
def test_images_in_both_splits_are_counted(splits, tmp_path, caplog):
    folder = write(tmp_path / "data", "train", [0, 1] * 3)
    write(folder, "test", [0, 1] * 2, first=2 if splits == "two with the same images" else 100)
    test = "train" if splits == "one split" else "test"
    Probe(ProbeConfig(path=str(folder), test_split=test), processor(4)).knn(raw_pixel_encoder, "k-NN")
    assert ("6 of 6" if splits == "one split" else "4 of 4") + " test images" in caplog.text


def test_images_of_one_split_alone_are_no_warning(caplog):
    Probe(ProbeConfig(path=str(SAMPLE), train_images=200, test_images=50), processor(8)).knn(raw_pixel_encoder, "k-NN")
    assert not caplog.text


@pytest.mark.fault("figures that mean nothing")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite(value, tmp_path):
    images = LabeledImages(Source(str(write(tmp_path / "data", "train", [0, 1, 2]))))
    encoder = lambda pixels: (torch.full((len(pixels), 2), value), torch.zeros(len(pixels), 1, 1, 2))  # noqa: E731
    with refused("3 of 3 images", "not numbers"):
        extract(encoder, processor(4), images)


@pytest.mark.fault("figures that mean nothing")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_neighbors", 0),
        ("num_neighbors", -3),
        ("num_neighbors", 1.5),
        ("num_neighbors", None),
        ("temperature", 0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "0.07"),
    ],
)
def test_settings_of_the_nearest_neighbors(name, value):
    with refused(name, "expected"):
        knn_scores(torch.eye(3), torch.arange(3), torch.eye(3), **{name: value})
    with refused(name, "expected"):
        ProbeConfig(**{name: value})


@pytest.mark.parametrize("temperature", [0.001, 0.005, 0.011, 0.07, 100.0])
def test_no_temperature_overflows(temperature):
    """Features of length 1 have cosines up to 1, and exp(1 / .01) is beyond what fp32 holds."""
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(50, 8, generator=generator)
    scores = knn_scores(train, torch.arange(50) % 5, train, 20, temperature)
    assert scores.isfinite().all() and (scores.sum(1) >= 1).all()
    if temperature <= 0.011:
        assert (scores.argmax(1) == torch.arange(50) % 5).all(), "each finds itself first"


@pytest.mark.fault("labels")
def test_training_labels_of_scores():
    for labels in (torch.tensor([-1, 0, 1]), torch.tensor([], dtype=torch.int64)):
        with refused("labels from 0 on"):
            knn_scores(torch.eye(3)[: len(labels)], labels, torch.eye(3))
