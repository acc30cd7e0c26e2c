"""One process, accumulation, and two processes under every engine: is it the same training?

    python -m training.benchmarks.engine_equivalence [--engines one accumulated ddp ...] [--methods ibot moco_v3]

Every variant runs training/pretrain.py for six steps on batches that hold all of the data, so that all variants see the same
images, and is compared with the variant of one process. Each is also resumed from its third step: under the same engine, and
under the next one of the list that has the same recipe. The table shows the largest difference of a loss, of a weight of
student and teacher, whether resuming gave the same bits, and the largest difference of a loss or a weight after resuming
under the other engine; the program fails if a difference exceeds its tolerance. In fp32 unless `--mixed_precision bf16`,
which needs a processor or GPU with bf16.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import torch
from safetensors.torch import load_file

from hssl_hf.runs.metric_logger import read_log

TRAINING = Path(__file__).parents[1]
IMAGES, STEPS = 16, 6
TOLERANCES = {"no": (2e-5, 1e-4), "bf16": (2e-2, 1e-2)}  # of a loss and a weight: AdamW enlarges rounding of small gradients
ENGINES = {
    "one": (None, []),
    "accumulated": (None, ["optim.gradient_accumulation_steps=2"]),
    "ddp": ("cpu", []),
    "fsdp2": ("fsdp2", []),
    "zero1": ("deepspeed_zero1", []),
    "zero2": ("deepspeed_zero2", []),
    "zero2 accumulated": ("deepspeed_zero2", ["optim.gradient_accumulation_steps=2"]),
}
COMMON = [
    f"optim.batch_size={IMAGES}",
    f"optim.epochs={STEPS}",
    "optim.base_learning_rate=0.01",
    "optim.warmup_epochs=1",
    "data.num_workers=0",
    "data.images_per_epoch=null",
    "run.logging_steps=1",
    "run.save_steps=3",
    "probe.path=null",
]
HSSL = [
    "model.backbone_kwargs={patch_size: 7, embed_dim: 32, depth: 2, num_heads: 1, weight_init: moco}",
    "model.auxiliary_depth=2",
    "model.projection_hidden_size=16",
    "model.projection_size=8",
    "model.num_prototypes=24",
]
MASKED_IMAGES = [
    "model.backbone_kwargs={patch_size: 7, embed_dim: 32, depth: 2, num_heads: 1}",
    "model.decoder_num_attention_heads=1",
    "views.global_crop_size=28",
]
METHODS = {
    "ibot": [  # heads, masks, local crops; prototypes that are frozen at first
        *HSSL,
        "model.objective=ibot",
        "model.patch_supervision=[base->base]",
        "views.num_local_crops=2",
        "views.local_crop_size=14",
        "optim.freeze_last_layer_epochs=2",
    ],
    "moco_v3": [  # statistics and negatives of the batch
        *HSSL,
        "model.auxiliary=resnet",
        "optim.grad_clip=global",
        "optim.max_grad_norm=1.0",
        "optim.base_learning_rate=0.002",
    ],
    "siamese_im": [
        f"{TRAINING}/recipes/siamese_im_cifar10.yaml",
        *MASKED_IMAGES,
    ],  # batch norms over the tokens of all processes
    "mae": [f"{TRAINING}/recipes/mae_cifar10.yaml", *MASKED_IMAGES],  # without a teacher
}

OF_THE_BATCH = ("moco_v3", "siamese_im")  # whose losses compare the images of a micro-batch: accumulation changes them


def write_images(folder: Path) -> None:
    """The first images of the embedded sample, in two shards."""
    folder.mkdir()
    sample = datasets.load_dataset("parquet", data_dir=str(TRAINING / "data" / "fashion_mnist"), split="train", streaming=True)
    rows = list(sample.cast_column("image", datasets.Image(decode=False)).take(IMAGES))
    table = datasets.Dataset.from_list(rows, features=datasets.Features({**sample.features, "image": datasets.Image()}))
    for shard in range(2):
        table.shard(2, shard, contiguous=True).to_parquet(folder / f"train-{shard:05d}-of-00002.parquet")


def train(engine: str, method: str, images: Path, folder: Path, precision: str, *overrides: str) -> None:
    config, own = ENGINES[engine]
    launcher = []
    if config:
        launcher = [
            "-m",
            "accelerate.commands.accelerate_cli",
            "launch",
            "--config_file",
            f"{TRAINING}/accelerate/{config}.yaml",
        ]
        launcher += ["--num_processes", "2", "--main_process_port", "0"]
    settings = [*COMMON, *METHODS[method], *own, f"optim.mixed_precision={precision}"]
    settings += [f"data.path={images}", f"run.output_dir={folder}", *overrides]
    command = [sys.executable, *launcher, f"{TRAINING}/pretrain.py", *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-6000:]}")


def losses(folder: Path) -> torch.Tensor:
    return torch.tensor([line["loss"] for line in read_log(folder / "log.jsonl") if "loss" in line], dtype=torch.float64)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors")


def resume(engine: str, method: str, images: Path, folder: Path, precision: str) -> None:
    """Delete the last checkpoint of a run and resume the one before."""
    shutil.rmtree(folder / "checkpoints" / f"step-{STEPS:08d}")
    shutil.rmtree(folder / "export")
    train(engine, method, images, folder, precision, "resume_from_checkpoint=auto")


def same_bits(results: tuple, others: tuple) -> bool:
    """Whether every loss and every weight is the same."""
    (losses, weights), (other_losses, other_weights) = results, others
    same = weights.keys() == other_weights.keys() and all(torch.equal(weights[name], other_weights[name]) for name in weights)
    return same and torch.equal(losses, other_losses)


def largest(ours: dict, theirs: dict, network: str) -> float:
    """The largest difference of a network's weights; infinite where names or types differ, 0 where there is no such network."""
    names = [name for name in theirs if name.startswith(network)]
    if ours.keys() != theirs.keys() or any(ours[name].dtype != torch.float32 for name in names if "num_batches" not in name):
        return float("inf")
    return max(((_learned(name, ours) - _learned(name, theirs)).abs().max().item() for name in names), default=0.0)


def _learned(name: str, weights: dict) -> torch.Tensor:
    """A weight, with zeros where it has no effect, so that its gradient is rounding error alone.

    Softmax cancels the bias of the keys, and MoCo's batch norms cancel the bias of the norm in front of the projector.
    """
    value = weights[name].double()
    is_moco = any("predictors" in other for other in weights)
    if is_moco and name.endswith(("base.norm.bias", "auxiliary.norm.bias")):
        return torch.zeros_like(value)
    return torch.stack([value.chunk(3)[0], value.chunk(3)[2]]) if name.endswith("qkv.bias") else value


def differences(results: tuple, reference: tuple) -> tuple[float, float, float]:
    """The largest difference of a loss, of a weight of the student, and of one of the teacher."""
    (losses, weights), (reference_losses, reference_weights) = results, reference
    networks = (largest(weights, reference_weights, network) for network in ("student", "teacher"))
    return (losses - reference_losses).abs().max().item(), *networks


def next_of(engine: str, engines: list[str]) -> str:
    """The next engine that trains by the same recipe, after the last one the first; itself if there is no other."""
    position = engines.index(engine)
    others = [*engines[position + 1 :], *engines[:position]]
    return next((other for other in others if ENGINES[other][1] == ENGINES[engine][1]), engine)


def compare(method: str, engines: list[str], work: Path, precision: str = "no") -> bool:
    """Print the table of one method; whether everything is within its tolerance."""
    images = work / "images"
    if not images.exists():
        write_images(images)
    engines = list(dict.fromkeys(["one", *engines]))
    if method in OF_THE_BATCH:
        engines = [engine for engine in engines if not engine.endswith("accumulated")]
    loss_tolerance, weight_tolerance = TOLERANCES[precision]
    reference, passed = None, True
    for engine in engines:
        other = next_of(engine, engines)
        folder = work / f"{method}-{engine}"
        train(engine, method, images, folder, precision)
        results = losses(folder), weights(folder)
        reference = reference or results
        loss, student, teacher = differences(results, reference)
        resume(engine, method, images, folder, precision)
        exact = same_bits((losses(folder), weights(folder)), results)
        resume(other, method, images, folder, precision)
        loss_after, *after = differences((losses(folder), weights(folder)), reference)
        good = exact and max(loss, loss_after) <= loss_tolerance and max(student, teacher, *after) <= weight_tolerance
        passed &= good
        verdict, resumed = "ok" if good else "FAILED", "same bits" if exact else "differs"
        after = max(loss_after, *after)
        print(
            f"{method:11}{engine:18}{loss:10.1e}{student:11.1e}{teacher:11.1e}{resumed:>12}{other:>18}{after:11.1e}{verdict:>8}",
            flush=True,
        )
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--mixed_precision", choices=TOLERANCES, default="no")
    options = parser.parse_args()
    precision = options.mixed_precision
    if precision == "bf16" and not torch.accelerator.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        parser.error("--mixed_precision bf16: this processor has no instructions for it")
    loss, weight = TOLERANCES[precision]
    print(f"tolerances: loss {loss}, weights {weight}, resume exact; {STEPS} steps of {IMAGES} images")
    print(f"{'method':11}{'engine':18}{'loss':>10}{'student':>11}{'teacher':>11}{'resume':>12}{'then under':>18}{'after':>11}")
    with tempfile.TemporaryDirectory() as work:
        results = [compare(method, options.engines, Path(work), precision) for method in options.methods]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
