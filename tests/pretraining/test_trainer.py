"""The complete program, through its command line, on the embedded images."""

import json
import os
import shutil
import subprocess
import sys
from functools import cache

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel

from hssl_hf import HSSLForPreTraining
from hssl_hf.cli import main as cli
from hssl_hf.cli.programs import read_recipe
from hssl_hf.experiments.frozen_evaluation import evaluate
from hssl_hf.publish.export import export_model
from hssl_hf.runs.metric_logger import read_log
from tests.conftest import SAMPLE
from tests.data.test_decode import ONE, SEVERAL
from tests.data.test_files import full_disk
from tests.data.test_stream import write_parquet
from tests.launches import SCRIPT, TINY, losses, settings_of, weights


def test_complete_run_through_accelerate_launch(tmp_path, forked_parity):
    """Train, probe, export, evaluate, report; then export once more from the checkpoint and load it as users do."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "1", str(SCRIPT)]
    command += [*TINY, f"run.output_dir={folder}", f"probe.path={SAMPLE}", "probe.train_images=500", "probe.test_images=100"]
    command += ["probe.linear=true"]
    command += ["probe.every_epochs=0.016", "optim.mixed_precision=bf16", "run.report_to=[tensorboard]"]
    one_core = {min(os.sched_getaffinity(0))}  # threads of so small a model only wait for each other
    pin = lambda: os.sched_setaffinity(0, one_core)  # noqa: E731
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=pin)
    assert done.returncode == 0, done.stderr
    assert "pre-trained backbone" in done.stdout and "raw pixels" in done.stdout and "AutoModel.from_pretrained" in done.stdout
    assert "img/s" in done.stderr and "wait" in done.stderr and "aux→base" in done.stderr
    log = read_log(folder / "log.jsonl")
    assert [line["step"] for line in log if "knn_top1" in line] == [0, 10, 20, 24]
    assert [line["step"] for line in log if "linear_top1" in line] == [0, 24]
    assert {"loss", "images_per_second", "data_wait", "cls_auxiliary_to_base"} <= set(log[1])
    assert (folder / "curves.png").stat().st_size > 10_000 and list((folder / "hssl_hf").glob("events*"))
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["step-00000020", "step-00000024"]
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [r["metric"] for r in records] == [*3 * ["knn_top1"], *3 * ["linear_top1"]]
    assert [r["subject"] for r in records] == [*2 * ["pre-trained backbone", "untrained backbone", "raw pixels"]]
    assert all(0 < r["value"] < 100 and r["n"] == 100 for r in records)
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["optim"]["batch_size"] == 16

    assert cli.main(["export", str(folder), str(tmp_path / "again")]) == 0
    first, second = (AutoModel.from_pretrained(path).state_dict() for path in (folder / "export", tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    data = [f"data.path={SAMPLE}", "data.train_images=500", "data.test_images=100"]
    anew = {r.metric: r.value for r in evaluate(tmp_path / "again", "linear", settings=data, baselines=False)}
    assert anew["linear_top1"] == records[3]["value"]


def test_a_resumed_run_logs_no_step_twice(pretrain, tmp_path):
    """To TensorBoard: the steps after the checkpoint were logged before the run was killed, and are logged again."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = ["optim.epochs=0.016", "run.report_to=[tensorboard]", "run.export=false", "run.save_steps=4"]
    assert pretrain(*settings) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000010")
    assert pretrain(*settings, "resume_from_checkpoint=auto") == 0
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "hssl_hf"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 11))
    assert (tmp_path / "run" / "curves.png").stat().st_size > 10_000, "drawn at the end, without a probe too"


@pytest.mark.fault("damaged files of a run")
def test_a_finished_run_that_has_lost_its_log_ends_again(pretrain, tmp_path, unchecked, capsys):
    settings = ["optim.epochs=0.016", f"probe.path={SAMPLE}", "probe.train_images=50", "probe.test_images=20"]
    assert pretrain(*settings) == 0
    (tmp_path / "run" / "log.jsonl").unlink()
    assert pretrain(*settings, "probe.linear=true", "resume_from_checkpoint=auto") == 0
    shown = capsys.readouterr().out
    assert "no records of k-NN" in shown and "no records of linear probe" in shown


@pytest.mark.fault("full disks")
def test_a_full_disk_at_a_figure_or_an_export_is_named_and_leaves_nothing(pretrain, tmp_path, capsys):
    probe = [f"probe.path={SAMPLE}", "probe.train_images=50", "probe.test_images=20"]
    with full_disk(8_000):
        assert pretrain(*probe) == 2
    text = capsys.readouterr().err
    assert "curves.png" in text and "make room" in text and "Traceback" not in text
    assert pretrain("optim.epochs=0.016", "run.export=false", "resume_from_checkpoint=auto") == 0
    with full_disk(8_000):
        assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "export")]) == 2
    text = capsys.readouterr().err
    assert f"{tmp_path / 'export'} cannot be written" in text and "make room" in text and "Traceback" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_license_and_origin_survive_resuming_and_the_export(pretrain, tmp_path, unchecked, capsys):
    """Weights that are not for commercial use give a run, its export and its full model of the same license."""
    config = read_recipe(settings_of("hssl"))[0].model_config()
    config.license = "cc-by-nc-4.0"
    export_model(HSSLForPreTraining(config), tmp_path / "before")
    settings = ["optim.epochs=0.016", "run.export=false", "run.save_steps=4", f"init_from={tmp_path}/before"]
    assert pretrain(*settings, "model.license=mit") == 2
    assert "model.license: expected cc-by-nc-4.0" in capsys.readouterr().err
    assert pretrain(*settings) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000010")
    shutil.rmtree(tmp_path / "before")
    assert pretrain(*settings, "resume_from_checkpoint=auto") == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["origin"]["name"], manifest["origin"]["license"], manifest["steps"]) == ("before", "cc-by-nc-4.0", 10)
    for kind in ("main", "training"):
        assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / kind), "--kind", kind]) == 0
        card = (tmp_path / kind / "README.md").read_text()
        assert "license: cc-by-nc-4.0" in card and "weights of `before`, under `cc-by-nc-4.0`, not for commercial use" in card
        assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "x"), "--kind", kind, "--license", "mit"]) == 2
    assert json.loads((tmp_path / "training" / "config.json").read_text())["license"] == "cc-by-nc-4.0"
    manifest.pop("origin")
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "main")]) == 0
    assert "weights of `before`, whose license is **unknown**" in (tmp_path / "main" / "README.md").read_text()


def test_infinite_loss_stops_with_a_report(pretrain, tmp_path, capsys):
    assert pretrain("optim.base_learning_rate=1e38", "optim.max_grad_norm=null", "optim.warmup_epochs=0") == 2
    errors = capsys.readouterr().err
    assert "the gradients of step 2 are not finite" in errors and "Lower optim.base_learning_rate" in errors
    capture = tmp_path / "run" / "captures" / "step-00000001"
    assert f"hssl-hf replay {capture}" in errors
    assert cli.main(["replay", str(capture)]) == 0
    shown = capsys.readouterr().out
    assert "micro-batches-0  loss nan" in shown and "base.model.patch_embed.proj.weight" in shown


def test_collapsed_training_raises_an_alarm(pretrain, tmp_path, capsys):
    arguments = [
        "model.objective=dino",
        "model.num_prototypes=32",
        "optim.teacher_temperature=[9.0, 9.0]",
        "optim.epochs=0.0192",
        "run.export=false",
    ]
    assert pretrain(*arguments, "optim.freeze_last_layer_epochs=0", "optim.warmup_epochs=0.003") == 0
    assert "alarm at step 4: the teacher is uniform" in capsys.readouterr().err
    assert "optim.teacher_temperature" in (tmp_path / "run" / "alarms.jsonl").read_text()
    assert {"rank_me", "loss_fraction_cls_auxiliary_to_base", "student_entropy_base"} <= set(
        read_log(tmp_path / "run" / "log.jsonl")[-1]
    )


def empty(folder):
    folder.mkdir()
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": []}, features=features).to_parquet(folder / "train.parquet", batch_size=1)
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optim.epoch=3"], "optim.epoch: unknown key. Did you mean 'epochs'"),
        (["model.auxiliary=convnet"], "model.auxiliary: expected one of 'convnext', "),
        (
            ["model.backbone=vit_tini_patch16_224"],
            "timm has no model 'vit_tini_patch16_224'. Did you mean vit_tiny_patch16_224",
        ),
        (["data.image_column=photo"], "has no column 'photo'; it has ['image', 'label']"),
        (["data.path={tmp}/empty", "data.images_per_epoch=null"], "has no images in it"),
        (["views.global_crop_size=30"], "30 pixels do not divide into patches of 14"),
        (
            ["model.objective=dino", "views.num_local_crops=1", "views.local_crop_size=16"],
            "(16, 16) pixels do not divide into patches",
        ),
        (["run.report_to=[nonesuch]"], "run.report_to: expected any of aim, clearml, comet_ml"),
        (["data.path={tmp}/few", "data.images_per_epoch=null"], "batch_size=16 is larger than an epoch, which has 9 images"),
        (
            ["data.path={tmp}/few", "data.images_per_epoch=10000"],
            "only 9 images in a pass for worker 1 of 1, but a batch needs 16",
        ),
        (["run.output_dir={tmp}/file/run"], "cannot write to run.output_dir="),
        (["views.num_local_crops=2"], "takes no local views, got 2; set views.num_local_crops=0"),
        (
            ["optim.gradient_accumulation_steps=2"],
            "compares the images of a batch, so optim.gradient_accumulation_steps must be 1",
        ),
        (
            ["model.model_type=moco"],
            "model.model_type: expected one of 'hssl', 'hssl_mae', 'hssl_search', 'siamese_im', got 'moco'",
        ),
        (["views.global_crop_blur=[0.0]", "views.global_crop_solarize=[0.0]"], "this method takes 2 global views, got 1"),
        (["optim.batch_size=0"], "optim.batch_size: expected a whole number from 1 to 1048576, got 0"),
        (["other.yaml", "another.yaml"], "expected one recipe"),
        (["nowhere.yaml"], "there is no recipe 'nowhere.yaml'"),
    ],
)
def test_bad_input_ends_in_one_clear_line(pretrain, tmp_path, capsys, arguments, message):
    write_parquet(tmp_path / "few", 9, 1)
    empty(tmp_path / "empty")
    (tmp_path / "file").write_text("not a folder")
    assert pretrain(*(argument.replace("{tmp}", str(tmp_path)) for argument in arguments)) == 2
    errors = capsys.readouterr().err
    assert f"error: {message}"[7:] in errors and "Traceback" not in errors


def test_resuming_requires_the_same_recipe(pretrain, tmp_path, capsys):
    assert pretrain("optim.epochs=0.008") == 0
    before = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert pretrain("optim.epochs=0.008") == 2
    assert "already holds a run; continue it with resume_from_checkpoint=auto" in capsys.readouterr().err
    assert pretrain("optim.epochs=0.008", "resume_from_checkpoint=auto", "optim.max_grad_norm=1.0", "seed=4") == 2
    errors = capsys.readouterr().err
    assert "optim.max_grad_norm: 3.0 -> 1.0" in errors and "seed: 0 -> 4" in errors
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == before
    assert pretrain("optim.epochs=0.008", "resume_from_checkpoint=auto", "run.logging_steps=3") == 0, (
        "what has no effect may change"
    )


def test_corrupt_images_are_counted_and_shown(pretrain, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    rows = [{"bytes": b"broken" if i in (3, 70) else _real()[i], "path": f"{i}.png"} for i in range(200)]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(folder / "train.parquet", batch_size=1)
    arguments = [f"data.path={folder}", "data.images_per_epoch=198", "optim.epochs=1"]
    assert pretrain(*arguments, "data.max_corrupt_fraction=0.05") == 0
    assert "2 images could not be decoded: " in capsys.readouterr().out
    assert pretrain(*arguments, "data.max_corrupt_fraction=0.001", f"run.output_dir={tmp_path}/other", "optim.epochs=2") == 2
    assert "more than data.max_corrupt_fraction=0.001" in capsys.readouterr().err


@pytest.mark.fault("files with several images")
def test_files_with_several_images_are_named_once_and_counted(pretrain, tmp_path, capsys):
    """Once each, however often they come, also where the run was interrupted."""
    (tmp_path / "images").mkdir()
    contents = [SEVERAL["TIFF stack"], ONE["reduced copies"], SEVERAL["animated GIF"], ONE["JPEG"], SEVERAL["APNG"], ONE["GIF"]]
    for number, content in enumerate(contents * 3):
        (tmp_path / "images" / str(number)).write_bytes(content)
    arguments = [f"data.path={tmp_path}/images", "optim.batch_size=6", "run.export=false"]
    assert pretrain(*arguments, "optim.epochs=3") == 0
    output = capsys.readouterr()
    assert output.err.count("holds several images") == 1 and "9 files hold several images" in output.out
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["first_of_several"] == 9
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000009")
    assert pretrain(*arguments, "optim.epochs=3", "resume_from_checkpoint=auto") == 0
    output = capsys.readouterr()
    assert "holds several images" not in output.err and "9 files hold several images" in output.out


@cache
def _real() -> list[bytes]:
    rows = datasets.load_dataset("parquet", data_dir=str(SAMPLE), split="train", streaming=True)
    return [row["image"]["bytes"] for row in rows.cast_column("image", datasets.Image(decode=False)).take(200)]


@pytest.mark.parametrize(("objective", "frozen_epochs"), [("dino", 0.0096), ("ibot", 0.0)])
def test_accumulation_and_frozen_prototypes(pretrain, tmp_path, objective, frozen_epochs):
    """Six steps of two micro-batches each; prototypes that are frozen throughout still equal those of the teacher."""
    patch = "[base->base]" if objective == "ibot" else "[]"
    arguments = [f"model.objective={objective}", f"model.patch_supervision={patch}", "model.num_prototypes=32"]
    arguments += [
        "views.num_local_crops=2",
        "views.local_crop_size=14",
        "optim.gradient_accumulation_steps=2",
        "optim.epochs=0.0096",
    ]
    arguments += [f"optim.freeze_last_layer_epochs={frozen_epochs}", "run.activation_checkpointing=true"]
    assert pretrain(*arguments) == 0
    assert len(losses(tmp_path / "run")) == 6
    state = load_file(tmp_path / "run" / "checkpoints" / "step-00000006" / "model.safetensors")
    student, teacher = (state[f"{network}.heads.prototypes.weight_v"] for network in ("student", "teacher"))
    assert torch.equal(student, teacher) == (frozen_epochs > 0)


@pytest.mark.parametrize("method", ["mae", "queue"])
def test_other_variants_finish_and_resume_to_the_same_bits(pretrain, tmp_path, method):
    """Resumed at step 10 from the checkpoint alone, which holds queue, centers and teacher."""
    assert pretrain("run.save_total_limit=9", method=method) == 0
    model, report = AutoModel.from_pretrained(tmp_path / "run" / "export", output_loading_info=True)
    assert not any(report.values()) and not [name for name in model.state_dict() if "auxiliary" in name or "decoder" in name]
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "run", again, ignore=shutil.ignore_patterns("step-*[!0]", "step-*[2-9]?", "step-*15", "export"))
    assert [path.name for path in (again / "checkpoints").iterdir()] == ["step-00000010"]
    assert pretrain(f"run.output_dir={again}", "resume_from_checkpoint=auto", "run.export=false", method=method) == 0
    first, second = weights(tmp_path / "run"), weights(again)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert ("objective.queues.auxiliary.keys" in first) == (method == "queue")
    assert not (again / "export").exists()
