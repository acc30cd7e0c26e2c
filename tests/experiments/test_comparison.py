"""Models are compared by what was recorded of them."""

import json

import pytest
from PIL import Image

from hssl_hf.cli.main import main
from hssl_hf.experiments.comparison import compare
from hssl_hf.publish.export import export_backbone
from tests.conftest import SAMPLE, tiny_model
from tests.evaluation.test_predictions import predictions
from tests.faults import refused


def record(subject: str, value: float, n: int = 200, **settings) -> dict:
    values = {"metric": "knn_top1", "value": value, "unit": "percent", "subject": subject, "dataset": "data", "revision": None}
    values |= {"split": "test", "n": n, "settings": {"num_neighbors": 20, **settings}, "seed": 0, "date": "2026-01-01"}
    return values | {"interval": [value - 2, value + 2]}


def write(folder, *records: dict):
    folder.mkdir(exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
    return folder


def test_a_table_of_models_and_protocols(tmp_path):
    """The last record of a figure counts."""
    first = write(tmp_path / "a", record("a", 50.0), record("a", 60.0), record("a", 70.0, features="patches"))
    second = write(tmp_path / "b", record("b|c", 65.0))
    lines = compare([first, second], tmp_path / "comparison")
    assert "| model | knn k=20 | knn k=20 patches |" in lines
    assert "| a | 60.00 [58.00, 62.00] | 70.00 [68.00, 72.00] |" in lines
    assert [line for line in lines if "65.00" in line] == [r"| b\|c | 65.00 [63.00, 67.00] | – |"]
    assert (tmp_path / "comparison" / "table.md").read_text().count("|") == "\n".join(lines).count("|")


def test_differences_are_paired_image_by_image(tmp_path):
    """On 100 images b corrects ten mistakes of a and makes two: +8 %; with other images there is nothing to pair."""
    labels = [0] * 100
    for name, wrong in (("a", range(10)), ("b", range(20, 22)), ("c", range(5))):
        folder = write(tmp_path / name, record(name, 100 - len(wrong)))
        truth = labels if name != "c" else [1, *labels[1:]]
        predictions(truth, [2 if i in wrong else 0 for i in range(100)], subject=name).save(folder)
    lines = compare([tmp_path / name for name in "abc"], tmp_path / "comparison")
    (difference,) = [line for line in lines if "minus" in line]
    assert difference.startswith("- knn k=20: b minus a, on the same images: +8.00 [")
    low, high = map(float, difference.partition("[")[2].rstrip("]").split(","))
    assert 0 < low < 8 < high < 16


@pytest.mark.fault("comparisons")
def test_what_cannot_be_compared(tmp_path):
    first = write(tmp_path / "a", record("a", 50.0))
    with refused("is not an evaluation", "--output"):
        compare([first, tmp_path / "nowhere"], tmp_path / "comparison")
    with refused("different images", "200", "100"):
        compare([first, write(tmp_path / "b", record("b", 50.0, n=100))], tmp_path / "comparison")
    with refused("top-1", "got none"):
        compare([write(tmp_path / "c")], tmp_path / "comparison")


def test_through_the_command_line(tmp_path, unchecked, capsys):
    """Two models, each beside its untrained backbone and raw pixels: a table and figures that can be seen."""
    for seed, name in ((0, "a"), (1, "b")):
        export_backbone(tiny_model(seed, image_size=32), tmp_path / name)
        images = [f"data.path={SAMPLE}", "data.train_images=200", "data.test_images=100", "knn.num_neighbors=[20]"]
        command = ["evaluate", str(tmp_path / name), "knn", *images, "--subject", name]
        assert main([*command, "--output", str(tmp_path / f"{name}-evaluation")]) == 0
    evaluations = [str(tmp_path / f"{name}-evaluation") for name in "ab"]
    assert main(["compare", *evaluations, "--output", str(tmp_path / "comparison")]) == 0
    shown = capsys.readouterr().out
    assert "| a |" in shown and "| b |" in shown and "| raw pixels (a-evaluation) |" in shown
    figures = sorted((tmp_path / "comparison").glob("*.png"))
    assert len(figures) == 3 + 6
    for path in figures:
        with Image.open(path) as figure:
            assert figure.width > 200 and figure.convert("L").getextrema()[0] < 100, path
