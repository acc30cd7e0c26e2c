import json

import pytest
import torch
from accelerate import Accelerator

from hssl_hf.data.decode import decode
from hssl_hf.pretraining.diagnostics import NonFiniteError, require_finite
from hssl_hf.runs.metric_logger import MetricAccumulator, MetricLogger, progress_metrics, read_log
from hssl_hf.visualization.curves import draw_curves, scale


def test_log_continues_after_a_crash_without_repeating(tmp_path):
    accelerator = Accelerator(cpu=True)
    logger = MetricLogger(tmp_path, accelerator)
    for step in (10, 20, 30):
        logger.log(step, {"loss": 1.0 / step})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    resumed = MetricLogger(tmp_path, accelerator, first_step=20)
    assert [line["step"] for line in read_log(resumed.path)] == [10, 20]
    resumed.log(30, {"loss": 0.5})
    assert read_log(resumed.path)[-1] == {"step": 30, "loss": 0.5}
    assert resumed.has(30, "loss") and not resumed.has(30, "knn_top1")
    MetricLogger(tmp_path, accelerator)
    assert read_log(resumed.path) == []


def test_accumulator_averages_and_keeps_non_finite_values():
    accelerator, accumulator = Accelerator(cpu=True), MetricAccumulator()
    for value in (1.0, 3.0):
        accumulator.add({"loss": torch.tensor(value), "discrepancy": None}, images=4)
    values, (flag,) = accumulator.read(accelerator, [1.0])
    assert values["loss"] == 2.0 and flag == 1.0 and "discrepancy" not in values and values["images_per_second"] > 0
    for value in (1.0, float("nan"), 1.0):
        accumulator.add({"loss": torch.tensor(value)}, images=4)
    values, _ = accumulator.read(accelerator, [])
    assert values["loss"] != values["loss"]


def test_non_finite_values_stop_with_a_report(tmp_path):
    require_finite({"loss": 1.0}, 3, tmp_path / "report.json", None)
    assert not (tmp_path / "report.json").exists()
    with pytest.raises(NonFiniteError, match=r"(?s)steps up to 7: cls.*checkpoint is step-5"):
        require_finite({"loss": 1.0, "cls": float("inf")}, 7, tmp_path / "report.json", "step-5")
    assert json.loads((tmp_path / "report.json").read_text())["not_finite"] == ["cls"]


def test_progress_shows_terms_discrepancy_and_data_wait():
    values = {"loss": 2.0, "cls_auxiliary_to_base": 1.5, "patch_base_to_base": 0.5, "discrepancy": 0.1}
    terms = ["cls_auxiliary_to_base", "patch_base_to_base"]
    shown = progress_metrics({**values, "images_per_second": 99.6, "data_wait": 0.25}, terms)
    assert shown == {"loss": "2.000", "cls aux→base": "1.500", "patch base→base": "0.500", "disc": "0.100"} | {
        "img/s": "100",
        "wait": "25%",
    }


def test_progress_shows_collapse():
    values = {"loss": 1.0, "positive": 0.9, "collapse": 0.25, "images_per_second": 1.0, "data_wait": 0.0}
    shown = progress_metrics(values, ["positive"])
    assert shown == {"loss": "1.000", "collapse": "0.250", "img/s": "1", "wait": "0%"}


def test_curves_are_drawn_from_what_the_log_has(tmp_path):
    lines = [{"step": s, "loss": 1 / (s + 1), "learning_rate": 0.1, "discrepancy": 0.2} for s in range(60)]
    lines += [{"step": 0, "knn_top1": 20.0, "knn_top1_pixels": 40.0}, {"step": 59, "knn_top1": 50.0}]
    draw_curves(lines, tmp_path / "four.png")
    draw_curves(lines[:60], tmp_path / "three.png")
    four, three = (decode((tmp_path / name).read_bytes()).shape[1:] for name in ("four.png", "three.png"))
    assert four[1] == three[1] and four[0] == pytest.approx(2 * three[0], abs=8), "three panels in a row"
    draw_curves([{**line, "collapse": 0.3} for line in lines], tmp_path / "five.png")
    assert decode((tmp_path / "five.png").read_bytes()).shape[1:] == four, "the second row has room for it"
    draw_curves([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_an_axis_is_logarithmic_where_values_span_decades():
    assert scale([5.0, 0.1, 0.03]) == "log" and scale([0.39, 0.41]) == "linear"
    assert scale([5.0, 0.0]) == scale([5.0, -1e-9]) == scale([1.0, 10.0]) == "linear"
