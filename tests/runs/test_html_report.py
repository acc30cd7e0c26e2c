"""The page of a run: self-contained, finished or not, and safe against markup in a run."""

import json
import re

import pytest

from hssl_hf.config.recipe import load_recipe
from hssl_hf.runs import manifest
from hssl_hf.runs.html_report import write_report
from hssl_hf.visualization.curves import draw_curves
from tests.publish.test_model_card import RECORD
from tests.runs.test_manifest import MANIFEST


@pytest.fixture
def run(tmp_path):
    load_recipe(None, ["optim.epochs=2", "optim.warmup_epochs=0"]).save(tmp_path / "recipe.yaml")
    lines = [{"step": step, "loss": 3.0 / step, "epoch": step / 10, "discrepancy": 0.1} for step in range(1, 11)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_unfinished_run_shows_its_progress(run):
    page = write_report(run).read_text()
    assert "10 of 20 steps" in page and "width: 50.0%" in page and "<b>0.300</b>" in page
    assert "## " not in page and "Results" not in page and "Alarms" not in page


def test_finished_run_shows_everything_in_one_file(run):
    manifest.write(run, {**MANIFEST, "steps": 10})
    (run / "results.jsonl").write_text(json.dumps(RECORD) + "\n")
    alarm = {"step": 4, "name": "<b>bad</b>", "finding": "f", "cause": "c", "remedy": "r"}
    (run / "alarms.jsonl").write_text(json.dumps(alarm) + "\n")
    (run / "figures").mkdir()
    draw_curves([{"step": 1, "loss": 1.0}], run / "figures" / "views.png")
    page = write_report(run, run / "other.html").read_text()
    assert "61.23 %" in page and "user/images" in page and "1 min" in page and "&lt;b&gt;bad&lt;/b&gt;" in page
    assert page.count("data:image/png;base64,") == 2
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page), "nothing is fetched from elsewhere"


def test_folder_without_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is no run: it holds no recipe\.yaml"):
        write_report(tmp_path)
