"""Predictions in a file: what can be read from them, and which images are shown."""

from dataclasses import replace

import pytest
import torch

from hssl_hf.data.source import Source
from hssl_hf.evaluation.classification import Classification
from hssl_hf.evaluation.encoder import raw_pixel_encoder
from hssl_hf.evaluation.features import Representation
from hssl_hf.evaluation.images import LabeledImages
from hssl_hf.evaluation.predictions import Predictions, most_certain_mistakes
from tests.data.test_stream import write_parquet
from tests.evaluation.extractors import extractor
from tests.faults import refused


def predictions(labels: list[int], predicted: list[int], subject: str = "a", classes=None, **values) -> Predictions:
    """Of images that were classified with confidences that fall from image to image."""
    count = len(labels)
    result = Classification(torch.tensor(predicted)[:, None], torch.linspace(0.9, 0.1, count), torch.tensor(labels))
    positions = torch.stack([torch.zeros(count, dtype=torch.int64), torch.arange(count)], dim=1)
    images = torch.zeros(1, 3, 96, 96, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    return Predictions(subject, "knn k=20", "data", "test", result, classes, positions, *images, **values)


def test_classes_and_confusions():
    of_model = predictions([0, 0, 1, 1, 1, 2], [0, 1, 2, 2, 1, 0], classes=["cat", "dog", "emu"])
    assert of_model.accuracies() == pytest.approx({"cat": 50.0, "dog": 100 / 3, "emu": 0.0})
    assert of_model.confusions(2) == [("dog", "emu", 2), ("cat", "dog", 1)]
    assert predictions([0, 1], [1, 1]).confusions(5) == [("0", "1", 1)]


def test_a_file_holds_everything(tmp_path):
    of_model = predictions([0, 1, 1], [0, 0, 1], subject="user/name: a b", classes=["cat", "dog"])
    of_model.save(tmp_path)
    (path,) = tmp_path.iterdir()
    again = Predictions.load(path)
    assert (again.subject, again.protocol, again.classes) == ("user/name: a b", "knn k=20", ["cat", "dog"])
    for name in ("ranking", "confidence", "labels"):
        assert torch.equal(getattr(again.result, name), getattr(of_model.result, name))
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    with refused(path.name, "evaluate the model again"):
        Predictions.load(path)


def test_the_most_certain_mistakes_are_read_again(tmp_path):
    """Image i is a gray of i, of class i % 2; all are taken for class 0, the first with the greatest confidence."""
    images = LabeledImages(Source(str(write_parquet(tmp_path, 50, 3))))
    split = extractor(4).extract(raw_pixel_encoder, images, Representation())
    result = Classification(torch.zeros(50, 1, dtype=torch.int64), torch.linspace(0.9, 0.1, 50), split.labels)
    ((mistakes, numbers),) = most_certain_mistakes([result], split, images)
    assert numbers.tolist() == list(range(1, 33, 2)) and mistakes.shape == (16, 3, 96, 96)
    assert mistakes[:, 0, 0, 0].tolist() == numbers.tolist()


@pytest.mark.fault("damaged evaluations")
@pytest.mark.parametrize(
    "change",
    [
        {"subject": 3},
        {"classes": [1]},
        {"positions": torch.zeros(3, dtype=torch.int64)},
        {"mistakes": torch.zeros(1, 3, 96, 96)},
        {"mistaken": torch.tensor([9])},
        {"result": Classification(torch.zeros(3, 1), torch.ones(3), torch.zeros(3, dtype=torch.int64))},
        {"result": Classification(torch.zeros(3, 1, dtype=torch.int64), torch.ones(2), torch.zeros(3, dtype=torch.int64))},
        {"result": Classification(*(torch.zeros(shape, dtype=torch.int64) for shape in ((0, 1), 0, 0)))},
    ],
    ids=["name", "classes", "positions", "kind of images", "numbers", "kind of classes", "lengths", "none"],
)
def test_predictions_that_do_not_go_together_are_refused(tmp_path, change):
    replace(predictions([0, 1, 1], [0, 0, 1]), **change).save(tmp_path)
    (path,) = tmp_path.iterdir()
    with refused(path.name, "expected", "evaluate the model again"):
        Predictions.load(path)
