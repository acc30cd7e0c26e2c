"""Complete runs of the program in separate processes, with settings small enough for tests."""

import os
import re
import subprocess

import torch
from safetensors.torch import load_file

from hssl_hf.engine.checkpoint import CheckpointManager
from hssl_hf.runs.metric_logger import read_log
from hssl_hf.runs.run_lock import read_status
from tests.conftest import ROOT, SAMPLE
from tests.processes import Program, wait_until

SCRIPT = ROOT / "training" / "pretrain.py"
TINY = [
    "model.backbone_kwargs={patch_size: 14, embed_dim: 32, depth: 1, num_heads: 1, weight_init: moco}",
    "model.projection_hidden_size=16",
    "model.projection_size=8",
    "optim.batch_size=16",
    "optim.mixed_precision=no",
    "optim.epochs=0.0384",  # 24 steps
    "optim.warmup_epochs=0.003",
    "data.shuffle_buffer_size=64",
    "run.logging_steps=1",
    "run.save_steps=5",
    "probe.path=null",
    "probe.linear=false",
]
SIAMESE = [
    str(ROOT / "training" / "recipes" / "siamese_im_cifar10.yaml"),
    "model.backbone_kwargs={patch_size: 7, embed_dim: 32, depth: 2, num_heads: 2}",
    "model.decoder_num_attention_heads=2",
    "model.drop_path_rate=0.3",
    "views.global_crop_size=28",
    f"data.path={SAMPLE}",
    "data.images_per_epoch=null",
]
MAE = [
    str(ROOT / "training" / "recipes" / "hssl" / "hssl_mae_vits16.yaml"),
    "model.backbone_kwargs={patch_size: 7, embed_dim: 32, depth: 2, num_heads: 2}",
    "model.decoder_hidden_size=16",
    "model.decoder_num_hidden_layers=1",
    "model.decoder_num_attention_heads=2",
    "views.global_crop_size=28",
    "views.num_local_crops=0",
    f"data.path={SAMPLE}",
    "data.images_per_epoch=null",
]
QUEUE = ["model.queue_size=48", "model.auxiliary=[vit, resmlp]", "optim.gradient_accumulation_steps=2"]
HSSL_ALONE = ("model.projection_hidden_size", "model.projection_size", "model.backbone_kwargs={patch_size: 14")
PHASES = {  # settings under which a phase takes a while
    "training": [],
    "saving": ["run.save_steps=1"],
    "probing": [f"probe.path={SAMPLE}", "probe.train_images=1500", "probe.test_images=50", "probe.every_epochs=0.016"],
    "exporting": [],
}
WATCHED = ("step", "loss", "discrepancy", "positive", "negative", "learning_rate")


def settings_of(method: str) -> list[str]:
    """Tiny settings of a method: hssl, the same with a queue, two heads and accumulation, mae, or siamese_im."""
    if method in ("hssl", "queue"):
        return [*TINY, *(QUEUE if method == "queue" else [])]
    return [*(value for value in TINY if not value.startswith(HSSL_ALONE)), *(MAE if method == "mae" else SIAMESE)]


def start(folder, *arguments, method: str = "hssl", max_file_size: int | None = None) -> Program:
    """Start the training of a method in a process of its own; with `max_file_size`, no file may grow beyond it."""
    command = [str(SCRIPT), *settings_of(method), f"run.output_dir={folder}", *arguments]
    return Program(*command, environment={**os.environ, "TQDM_MININTERVAL": "0"}, max_file_size=max_file_size)


def wait_for_step(process: Program | subprocess.Popen, step: int) -> int:
    """Read the progress bar until it shows a step, or a later one, which is returned."""
    seen = ""
    while character := process.stderr.read(1):
        seen = (seen + character)[-200:]
        match = re.search(r"(\d+)/\d+ ", seen)
        if match and int(match.group(1)) >= step:
            return int(match.group(1))
    raise AssertionError(f"the program ended early: {seen}")


def wait_for_phase(process, phase: str, folder) -> None:
    """Return when a run is in a phase; the k-NN probe follows step 10, and the last checkpoint is followed by the export."""
    if phase in ("training", "probing"):
        step = 3 if phase == "training" else 10
        reached = lambda: any(line["step"] >= step for line in read_log(folder / "log.jsonl"))  # noqa: E731
    else:
        pattern = ".step-*.draft/*" if phase == "saving" else "step-00000024"
        reached = lambda: list(folder.glob(f"checkpoints/{pattern}"))  # noqa: E731
    wait_until(process, reached)


def stopped_well(folder, errors: str) -> None:
    """There is a checkpoint that can be resumed, and the folder shows that the run was interrupted."""
    assert CheckpointManager(folder / "checkpoints").latest_valid(), errors
    assert read_status(folder)["state"] == "interrupted" and not (folder / "run.lock").exists(), errors
    assert "Traceback" not in errors and "Exception ignored" not in errors, errors


def losses(folder) -> list[list[float]]:
    return [[line.get(name) for name in WATCHED] for line in read_log(folder / "log.jsonl") if "loss" in line]


def weights(folder, step: int = 24) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / "model.safetensors")
