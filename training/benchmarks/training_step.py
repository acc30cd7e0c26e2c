"""A full step of iBOT with a ConvNeXt head against iBOT alone: ours, straight from the paper, and of lightly's modules.

    python -m training.benchmarks.training_step [--batch 8] [--lightly]

ViT-S/16, 2×224 and 10×96 pixels, head of depth 3, drop path .1, one thread of a CPU; AdamW, clipping and the teacher's update
included, data not. Memory is what the step holds at once beside weights and optimizer. `--lightly` makes an environment of its
own for lightly, below the user's cache folder.
"""

import json
import subprocess
import sys
import venv
from functools import partial
from pathlib import Path

import timm
import torch

from training.benchmarks.harness import measure, parse, run_variant
from training.benchmarks.reference_ibot import lightly_step, make_views, straightforward_step

DROP_PATH = 0.1
LIGHTLY = "lightly==1.6.0"
RATIOS = (("hssl", "straightforward"), ("hssl", "base"), ("base", "straightforward"), ("hssl", "lightly"), ("base", "lightly"))


def our_step(images: int, drop_path_rate: float, autocast, auxiliary: str | None):
    from hssl_hf import HSSLConfig, HSSLForPreTraining
    from hssl_hf.engine.optim import build_optimizer, clip_per_parameter, set_rates

    arrows = {} if auxiliary else {"cls_supervision": ["base->base"]}
    config = HSSLConfig(auxiliary=auxiliary, norm_last_layer=False, drop_path_rate=drop_path_rate, **arrows)
    model = HSSLForPreTraining(config).train()
    optimizer = build_optimizer(model.student, (0.9, 0.999))
    set_rates(optimizer, 1e-4, 0.04)
    globals_, locals_, masks = make_views(images)

    def step() -> None:
        with autocast():
            loss = model(globals_, locals_, masks, teacher_temperature=0.04).loss
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


def run(variant: str, precision: str, images: int, repeats: int) -> dict[str, float]:
    torch.manual_seed(0)
    # As training/pretrain.py does, for all variants: in bf16 the fused backward pass takes many times as long on a CPU.
    timm.layers.set_fused_attn(precision == "fp32")
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=precision == "bf16")
    return measure(VARIANTS[variant](images, DROP_PATH, autocast), repeats)


def lightly_python() -> str:
    """The interpreter of an environment that holds lightly beside our versions of torch and timm."""
    folder = Path.home() / ".cache" / "hssl_hf" / LIGHTLY
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"installing {LIGHTLY} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        versions = [LIGHTLY, f"torch=={torch.__version__.split('+')[0]}", f"timm=={timm.__version__}", "psutil"]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *versions], check=True)
        (folder / "complete").touch()
    return str(python)


def main() -> None:
    more = {"batch": (8, "images"), "lightly": (False, "measure lightly too, in an environment of its own")}
    options = parse(__doc__, repeats=3, **more)
    if options.variant:
        variant, precision, images = options.variant
        print(json.dumps(run(variant, precision, int(images), options.repeats)))
        return
    pythons = {"hssl": sys.executable, "base": sys.executable, "straightforward": sys.executable}
    if options.lightly:
        pythons["lightly"] = lightly_python()
    found = {}
    print(f"{options.batch} images\n{'variant':17}{'precision':>10}{'seconds':>10}{'MiB':>9}")
    for precision in ("fp32", "bf16"):
        for variant, python in pythons.items():
            result = found[variant, precision] = run_variant(
                __file__, [variant, precision, options.batch], options.repeats, python
            )
            print(f"{variant:17}{precision:>10}{result['seconds']:10.2f}{result['mebibytes']:9.0f}", flush=True)
    print(f"\n{'ratio':42}{'time':>8}{'memory':>9}")
    for precision, other in (("fp32", "fp32"), ("bf16", "bf16"), ("bf16", "fp32")):
        for ours, theirs in RATIOS:
            if theirs in pythons and not (precision != other and theirs == "base"):
                a, b = found[ours, precision], found[theirs, other]
                name = f"{ours} {precision} / {theirs} {other}"
                print(f"{name:42}{a['seconds'] / b['seconds']:7.2f}×{a['mebibytes'] / b['mebibytes']:8.2f}×")


if __name__ == "__main__":
    main()
