"""Accuracies that would mean nothing are refused: labels that are no classes, splits that do not go together."""

import datasets
import numpy as np
import pytest
import torch

from hssl_hf.data.source import Source
from hssl_hf.evaluation.encoder import raw_pixel_encoder
from hssl_hf.evaluation.features import Representation
from hssl_hf.evaluation.knn import knn_scores
from hssl_hf.evaluation.labels import align_labels, label_of, number_labels, require_comparable
from hssl_hf.evaluation.probe import ProbeConfig
from hssl_hf.evaluation.splits import LabeledData, extract_splits
from tests.conftest import SAMPLE
from tests.data.test_stream import png
from tests.evaluation.extractors import extractor
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
    "label", [-1, None, [1], [0, 1, 0], [[1]], 1.0, 0.5, float("nan"), "", " ", b"1", {"id": 1}, 10**9, np.float32(1)]
)
def test_values_that_are_no_classes(label):
    with refused("'a.png'", "expected a class"):
        label_of(label, "a.png", SOURCE)


@pytest.mark.parametrize(
    ("label", "expected"),
    [(0, 0), (np.int64(7), 7), (np.uint8(7), 7), (99_999, 99_999), (True, 1), (np.False_, 0), ("cat", "cat"), ("7", "7")],
)
def test_integers_booleans_and_names_are_classes(label, expected):
    result = label_of(label, "a.png", SOURCE)
    assert result == expected and type(result) is type(expected)


def test_names_are_numbered_in_their_order():
    numbers, names = number_labels(["dog", "cat", "dog", "emu"], None, SOURCE)
    assert numbers.tolist() == [1, 0, 1, 2] and names == ["cat", "dog", "emu"]
    numbers, names = number_labels([1, 0], ["cat", "dog"], SOURCE)
    assert numbers.tolist() == [1, 0] and names == ["cat", "dog"]


@pytest.mark.fault("labels")
@pytest.mark.parametrize(("labels", "names"), [(["cat", 1], None), ([0, 2], ["cat", "dog"])])
def test_labels_that_do_not_go_together(labels, names):
    with refused("'label'", "'test'"):
        number_labels(labels, names, SOURCE)


def test_classes_of_two_splits_are_the_same_by_name():
    """Split by split a name has another number: of the test images the first is a dog, as the second of training."""
    train, test = (torch.tensor([0, 1]), ["cat", "dog"]), (torch.tensor([0, 1, 2]), ["dog", "emu", "cat"])
    labels, test_labels, names = align_labels(train, test)
    assert labels.tolist() == [0, 1] and test_labels.tolist() == [1, 2, 0] and names == ["cat", "dog", "emu"]
    assert align_labels((torch.tensor([3]), None), (torch.tensor([4]), None)) == (torch.tensor([3]), torch.tensor([4]), None)
    with refused("names", "numbers"):
        align_labels(train, (torch.tensor([0]), None))


@pytest.mark.fault("labels")
@pytest.mark.parametrize(
    ("labels", "word"),
    [
        ([-1] * 3, "-1"),
        ([0, None, 1], "None"),
        ([[0, 1]] * 3, "List"),
        ([0.0, 1.0, 2.5], "float"),
        ([[[1]]] * 3, "List"),
        ([0, 1, -1], "-1"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_of_a_dataset(labels, word, split, tmp_path):
    write(tmp_path / "data", split, labels)
    write(tmp_path / "data", "test" if split == "train" else "train", [0, 1, 2])
    with refused(word, "expected"):
        extract_splits(extractor(4), raw_pixel_encoder, LabeledData(path=str(tmp_path / "data")), Representation(), "")


@pytest.mark.parametrize("kind", ["integers", "names", "booleans", "ClassLabel"])
def test_all_kinds_of_labels_give_the_same_accuracy(kind, tmp_path):
    """Training images 0 to 5 and test images 6 to 8 of two classes."""
    names = ["cat", "dog"]
    classes = {"integers": [0, 1], "names": names, "booleans": [False, True]}.get(kind, [0, 1])
    label = datasets.ClassLabel(names=names) if kind == "ClassLabel" else None
    folder = write(tmp_path / "data", "train", classes * 3, kind=label)
    write(folder, "test", classes * 3, first=6, kind=label)
    data = LabeledData(path=str(folder))
    train, test = extract_splits(extractor(4), raw_pixel_encoder, data, Representation(), "")
    assert train.labels.tolist() == [0, 1] * 3 and test.labels.tolist() == [0, 1] * 3
    assert train.classes == (None if kind in ("integers", "booleans") else names)


@pytest.mark.fault("labels")
def test_splits_that_number_their_classes_differently(tmp_path):
    """Saved datasets are put in agreement by name; parquet files, of which `datasets` reads one for all, are refused."""
    names, rows = ["cat", "dog"], {"label": [0, 1], "image": [{"bytes": png(i), "path": None} for i in range(2)]}
    splits = {"train": names, "test": names[::-1]}
    for split, order in splits.items():
        features = datasets.Features(label=datasets.ClassLabel(names=order), image=datasets.Image())
        splits[split] = datasets.Dataset.from_dict(rows, features)
        splits[split].to_parquet(tmp_path / "parquet" / f"{split}-0.parquet")
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    data = LabeledData(path=str(tmp_path / "saved"))
    train, test = extract_splits(extractor(4), raw_pixel_encoder, data, Representation(), "")
    assert train.labels.tolist() == [0, 1] and test.labels.tolist() == [1, 0] and test.classes == names
    with refused("'test'", "['dog', 'cat']", "['cat', 'dog']"):
        data = LabeledData(path=str(tmp_path / "parquet"))
        extract_splits(extractor(4), raw_pixel_encoder, data, Representation(), "")


def test_a_class_list_of_names_and_a_limit_per_class(tmp_path):
    folder = write(tmp_path / "data", "train", ["cat", "dog", "emu"] * 4)
    write(folder, "test", ["dog", "emu", "cat"], first=50)
    (tmp_path / "classes.txt").write_text("emu\ncat\n")
    data = LabeledData(path=str(folder), classes=str(tmp_path / "classes.txt"), train_images_per_class=3)
    train, test = extract_splits(extractor(4), raw_pixel_encoder, data, Representation(), "")
    assert train.classes == ["cat", "emu"] and train.labels.tolist() == [0, 1] * 3 and test.labels.tolist() == [1, 0]


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
    extract_splits(extractor(4), raw_pixel_encoder, LabeledData(path=str(folder), test_split=test), Representation(), "")
    assert ("6 of 6" if splits == "one split" else "4 of 4") + " test images" in caplog.text


def test_images_of_one_split_alone_are_no_warning(caplog):
    data = LabeledData(path=str(SAMPLE), train_images=200, test_images=50)
    extract_splits(extractor(8), raw_pixel_encoder, data, Representation(), "")
    assert not caplog.text


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
