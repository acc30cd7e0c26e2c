"""The page of a run: self-contained, finished or not, and safe against markup in a run."""

import base64
import json
import os
import re
from pathlib import Path

import pytest

from hssl_hf.config.recipe import load_recipe
from hssl_hf.runs import manifest
from hssl_hf.runs.html_report import write_report
from hssl_hf.runs.run_lock import STATUS
from hssl_hf.visualization.curves import draw_curves
from tests.faults import refused
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


@pytest.mark.fault("status of a run")
@pytest.mark.parametrize(
    ("status", "words"),
    [('{"state": "failed", "message": "no <room>"}', "<p><b>failed: no &lt;room&gt;</b></p>"), ("{", ""), (None, "")],
)
def test_the_page_begins_with_what_has_become_of_the_run(run, status, words):
    if status is not None:
        (run / STATUS).write_text(status)
    above, _, _ = write_report(run).read_text().partition('<div class="bar"')
    assert above.rstrip().endswith(words or "</p>") and ("<b>" in above) == bool(words)


def test_folder_without_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is no run: it holds no recipe\.yaml"):
        write_report(tmp_path)


@pytest.mark.parametrize("kind", [str, Path])
def test_nothing_but_the_page_is_written(run, kind):
    before = sorted(run.rglob("*"))
    page = write_report(kind(run), kind(run / "page.html"))
    assert sorted(run.rglob("*")) == sorted([*before, page]) and page.read_text().count("data:image/png;base64,") == 1


@pytest.mark.fault("links in a run")
@pytest.mark.parametrize("name", ["curves.png", "figures/views.png", "figures"])
def test_a_page_shows_nothing_that_a_link_leads_to(run, tmp_path_factory, caplog, name):
    private = tmp_path_factory.mktemp("private")
    draw_curves([{"step": 1, "loss": 1.0}], private / "views.png")
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(private if name == "figures" else private / "views.png")
    content = base64.b64encode((private / "views.png").read_bytes()).decode()
    assert content not in write_report(run).read_text() and "a figure is left out" in caplog.text


@pytest.mark.fault("links in a run")
def test_a_page_is_not_written_through_a_link(run, tmp_path_factory):
    private = tmp_path_factory.mktemp("private") / "thesis.html"
    private.write_text("years of work")
    (run / "report.html").symlink_to(private)
    assert not write_report(run).is_symlink() and private.read_text() == "years of work"


@pytest.mark.fault("files of other formats")
@pytest.mark.parametrize("content", [b"", b"<svg onload=alert(1)>", b"-----BEGIN OPENSSH PRIVATE KEY-----"])
def test_a_page_shows_figures_alone(run, content, caplog):
    (run / "figures").mkdir()
    (run / "figures" / "views.png").write_bytes(content)
    assert write_report(run).read_text().count("data:image/png;base64,") == 1 and "views.png" in caplog.text


@pytest.mark.fault("damaged files of a run")
@pytest.mark.parametrize("name", ["log.jsonl", "results.jsonl", "alarms.jsonl", "manifest.json"])
@pytest.mark.parametrize(
    "damage",
    ["{", "[1]", '{"step": "x"}', '{"loss": NaN}', '{"step": 1, "loss": "high"}', '{"value": 1}', '{"metric": 3}', "\0\0"],
)
def test_damaged_files_of_a_run_are_skipped_and_named(run, name, damage, caplog):
    with (run / name).open("a") as file:
        file.write(damage + "\n")
    page = write_report(run).read_text()
    assert "10 of 20 steps" in page
    is_object = json.loads(damage) if damage[0] == "{" and damage[-1] == "}" else None
    assert name in caplog.text or (name in ("alarms.jsonl", "manifest.json") and is_object is not None)


@pytest.mark.fault("damaged files of a run")
@pytest.mark.parametrize(
    "line",
    [
        '{"step": 11, "epoch": NaN}', '{"step": 11, "epoch": -1}', f'{{"step": {"9" * 401}, "loss": 1.0}}',
        f'{{"step": 11, "loss": {"9" * 401}}}', '{"step": 11, "loss": 1.7e308}', '{"step": -1}',
    ],
)  # fmt: skip
def test_absurd_numbers_of_a_log_are_skipped_and_named(run, line, caplog):
    with (run / "log.jsonl").open("a") as file:
        file.write(line + "\n")
    assert "10 of 20 steps" in write_report(run).read_text() and "log.jsonl: damaged lines are skipped: line 11" in caplog.text


@pytest.mark.fault("damaged files of a run")
def test_an_epoch_near_0_plans_nothing(run):
    (run / "log.jsonl").write_text('{"step": 3, "loss": 1.0, "epoch": 1e-320}\n')
    assert "3 of 3 steps" in write_report(run).read_text()


@pytest.mark.fault("secrets")
def test_the_page_shows_no_secret(run):
    address = "https://me:swordfish@host/images.tar"
    load_recipe(None, [f"data.path={address}"]).save(run / "recipe.yaml")
    (run / STATUS).write_text(json.dumps({"state": "failed", "message": f"hf_{'a' * 34} was refused"}))
    page = write_report(run).read_text()
    assert "swordfish" not in page and "aaaa" not in page and "***" in page


@pytest.mark.fault("files of unusual names")
def test_a_run_in_a_folder_whose_name_is_no_text(run):
    folder = run.with_name(os.fsdecode(b"caf\xe9"))
    run.rename(folder)
    assert "10 of 20 steps" in write_report(folder).read_text()


@pytest.mark.fault("damaged files of a run")
@pytest.mark.parametrize(
    "change",
    [{"value": float("nan")}, {"value": None}, {"settings": []}, {"subject": 3}, {"n": "many"}, {"interval": [99, 98]}],
)
def test_damaged_records_are_skipped_and_named(run, change, caplog):
    (run / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in (RECORD, {**RECORD, **change})))
    assert write_report(run).read_text().count("61.23 %") == 1
    assert f"results.jsonl: damaged lines are skipped: line 2 ({next(iter(change))}: expected" in caplog.text


@pytest.mark.fault("damaged files of a run")
@pytest.mark.parametrize(
    "change", [{"data": "x"}, {"versions": 3}, {"seconds": "long"}, {"hardware": []}, {"estimate": 1}, {"seed": None}]
)
def test_damaged_entries_of_a_manifest_are_skipped_and_named(run, change, caplog):
    manifest.write(run, {**MANIFEST, "steps": 10, **change})
    assert "10 of 10 steps" in write_report(run).read_text()
    assert f"manifest.json: a damaged entry is skipped: {next(iter(change))}: expected" in caplog.text


@pytest.mark.fault("outputs that cannot be written")
@pytest.mark.parametrize("output", ["nowhere/page.html", "folder"])
def test_a_page_that_cannot_be_written(run, output):
    (run / "folder").mkdir()
    with refused("--output: expected a file", output):
        write_report(run, run / output)
