import pytest

from hssl_hf.data.splits import select_split, split_name
from tests.faults import refused

SPLIT_NAMES = {
    "train": "train", "Training": "train", "train2017": "train", "train-00001-of-00128": "train", "train_1": "train",
    "train-semi": "train-semi", "train_semi": "train-semi", "val": "validation", "valid": "validation", "dev": "validation",
    "validation-segmentation": "validation-segmentation", "TEST": "test", "eval": "test", "test-2024-03": "test",
}  # fmt: skip


@pytest.mark.parametrize("name", SPLIT_NAMES)
def test_names_of_splits(name):
    assert split_name(name) == SPLIT_NAMES[name]


@pytest.mark.parametrize(
    "name", ["test tube", "trainer", "trains", "steam train", "evaluations", "my-train", "develop", "", "1"]
)
def test_other_names_are_no_splits(name):
    assert split_name(name) is None


def selected(names: list[str], split: str | None = None) -> set[str]:
    paths = [tuple(name.split("/")) if name else () for name in names]
    return {names[index] for index in select_split(paths, split, "folder").indices}


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (["train/a", "train/b", "val/a"], None, ["train/a", "train/b"]),
        (["train/a", "train/b", "val/a"], "validation", ["val/a"]),
        (["train/a", "val/a"], "all", ["train/a", "val/a"]),
        (["train", "train-semi", "validation", "validation-segmentation"], None, ["train"]),
        (["train", "train-semi", "validation", "validation-segmentation"], "train-semi", ["train-semi"]),
        (["train-semi", "validation-segmentation"], "validation-segmentation", ["validation-segmentation"]),
        (["train2014", "train2017", "val2017"], None, ["train2014", "train2017"]),
        (["train2014", "train2017", "val2017"], "train2017", ["train2017"]),
        (["outer/inner/train/a", "outer/inner/test/a"], None, ["outer/inner/train/a"]),
        (["bicycle", "bus", "car", "train"], None, ["bicycle", "bus", "car", "train"]),
        (["bicycle", "bus", "car", "train"], "train", ["train"]),
        (["cat/train", "cat/test", "dog/train", "dog/test"], None, ["cat/train", "cat/test", "dog/train", "dog/test"]),
        (["cat/train", "cat/test", "dog/train", "dog/test"], "test", ["cat/test", "dog/test"]),
        (["", "train", "val"], None, ["", "train", "val"]),
        (["a", "b"], "train", ["a", "b"]),
        ([""], "train", [""]),
        (["train"], None, ["train"]),
    ],
)
def test_what_is_read(names, split, expected):
    assert selected(names, split) == set(expected)


def test_a_doubtful_reading_is_reported_with_the_other():
    reading = select_split([("bus",), ("train",)], None, "folder").reading
    assert "(train) are read as folders of one dataset" in reading and "data.split=" in reading
    assert "data.split=all" in select_split([("train",), ("val",)], None, "folder").reading
    assert select_split([("a",), ("b",)], None, "folder").reading == ""


@pytest.mark.fault("folders of images")
@pytest.mark.parametrize(
    ("names", "split"), [(["val", "test"], None), (["train", "val"], "test"), (["a", "b"], "test"), (["a", "val"], "train")]
)
def test_missing_splits_are_refused(names, split):
    with refused("data.split=", split or "train", "folder"):
        selected(names, split)
