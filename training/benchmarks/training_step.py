"""A full step of iBOT with a ConvNeXt head against iBOT alone: ours, straight from the paper, and of lightly's modules.

    python -m training.benchmarks.training_step [--batch 8] [--lightly]

ViT-S/16, 2×224 and 10×96 pixels, head of depth 3, drop path .1, one thread of a CPU; AdamW, clipping and the teacher's update
included, data not. Memory is what the step allocates at most beside weights and optimizer.
"""

import itertools
import site
import subprocess
import sys
from functools import partial
from pathlib import Path

import timm
import torch

from hssl_hf import HSSLConfig, HSSLForPreTraining
from hssl_hf.engine.optim import build_optimizer, clip_per_parameter, set_rates
from training.benchmarks.harness import benchmark_parser, isolated, measure
from training.benchmarks.reference_ibot import lightly_step, make_views, straightforward_step

DROP_PATH = 0.1
LIGHTLY = "lightly==1.6.0"
LIGHTLY_FOLDER = Path.home() / ".cache" / "hssl_hf" / LIGHTLY
PRECISIONS = (("fp32", "fp32"), ("bf16", "bf16"), ("bf16", "fp32"))
RATIOS = (("hssl", "straightforward"), ("hssl", "base"), ("base", "straightforward"), ("hssl", "lightly"), ("base", "lightly"))


def our_step(images: int, drop_path_rate: float, autocast, auxiliary: str | None):
    supervision = {} if auxiliary else {"cls_supervision": ["base->base"]}
    config = HSSLConfig(auxiliary=auxiliary, norm_last_layer=False, drop_path_rate=drop_path_rate, **supervision)
    model = HSSLForPreTraining(config).train()
    optimizer = build_optimizer(model.student, (0.9, 0.999))
    set_rates(optimizer, 1e-4, 0.04)
    views = make_views(images)

    def step() -> None:
        with autocast():
            loss = model(*views, teacher_temperature=0.04).loss
        loss.backward()
        clip_per_parameter([p.grad for p in model.student.parameters() if p.grad is not None], 3.0)
        optimizer.step()
        optimizer.zero_grad()
        model.update_teacher(0.996)

    return step


VARIANTS = {
    "hssl": partial(our_step, auxiliary="convnext"),
    "base": partial(our_step, auxiliary=None),
    "straightforward": straightforward_step,
    "lightly": lightly_step,
}


def measure_variant(variant: str, precision: str, images: int, repeats: int) -> dict[str, float]:
    if variant == "lightly":
        site.addsitedir(str(LIGHTLY_FOLDER))
    torch.manual_seed(0)
    # As the trainer does, for all variants: in bf16 the fused backward pass takes many times as long on a CPU.
    timm.layers.set_fused_attn(precision == "fp32")
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=precision == "bf16")
    return measure(VARIANTS[variant](images, DROP_PATH, autocast), repeats)


def install_lightly() -> None:
    """Into a folder of its own, without its dependencies: the modules that are measured need torch and timm alone."""
    if not LIGHTLY_FOLDER.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", LIGHTLY_FOLDER, LIGHTLY]
        subprocess.run(command, check=True)


def main() -> None:
    parser = benchmark_parser(__doc__, repeats=3, batch=8)
    parser.add_argument("--lightly", action="store_true", help=f"measure {LIGHTLY} too, downloaded once to {LIGHTLY_FOLDER}")
    options = parser.parse_args()
    if options.lightly:
        install_lightly()
    costs = {}
    print(f"{options.batch} images\n{'variant':17}{'precision':>10}{'seconds':>10}{'MiB':>9}")
    for precision, variant in itertools.product(("fp32", "bf16"), VARIANTS):
        if variant != "lightly" or options.lightly:
            cost = isolated(measure_variant, variant, precision, options.batch, options.repeats)
            print(f"{variant:17}{precision:>10}{cost['seconds']:10.2f}{cost['mebibytes']:9.0f}", flush=True)
            costs[variant, precision] = cost
    print(f"\n{'ratio':42}{'time':>8}{'memory':>9}")
    for (precision, other), (ours, theirs) in itertools.product(PRECISIONS, RATIOS):
        if (theirs, other) in costs and (precision == other or theirs != "base"):
            a, b = costs[ours, precision], costs[theirs, other]
            name = f"{ours} {precision} / {theirs} {other}"
            print(f"{name:42}{a['seconds'] / b['seconds']:7.2f}×{a['mebibytes'] / b['mebibytes']:8.2f}×")


if __name__ == "__main__":
    main()
