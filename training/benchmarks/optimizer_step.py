"""What comes after the backward pass: clipping, optimizer, teacher. Loops over parameters against our forms, and their share.

    python -m training.benchmarks.optimizer_step [--batch 8]

ViT-S/16 with a ConvNeXt head of depth 3, one thread of a CPU, fp32 weights.
"""

import torch

from hssl_hf import HSSLConfig, HSSLForPreTraining
from hssl_hf.engine.optim import build_optimizer, clip_per_parameter, parameter_groups, set_rates
from hssl_hf.modules.ema import trainable_pairs, update_teacher
from training.benchmarks.harness import parse, seconds
from training.benchmarks.reference_ibot import make_views

MOMENTUM, CLIP = 0.996, 3.0


def clip_in_a_loop(gradients: list[torch.Tensor]) -> None:
    """One norm after the other, each read by the host."""
    for gradient in gradients:
        scale = CLIP / (gradient.norm(2).item() + 1e-6)
        if scale < 1:
            gradient.mul_(scale)


@torch.no_grad()
def follow_in_a_loop(student, teacher) -> None:
    for source, target in trainable_pairs(student, teacher):
        target.mul_(MOMENTUM).add_(source, alpha=1 - MOMENTUM)


def main() -> None:
    options = parse(__doc__, repeats=9, batch=(8, "images of the step whose share is shown"))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = HSSLForPreTraining(HSSLConfig(norm_last_layer=False)).train()
    globals_, locals_, masks = make_views(options.batch)

    def forward_and_backward() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(globals_, locals_, masks, teacher_temperature=0.04).loss
        loss.backward()

    step = seconds(forward_and_backward, 3)
    gradients = [p.grad for p in model.student.parameters() if p.grad is not None]
    optimizers = {
        "loop": torch.optim.AdamW(parameter_groups(model.student), lr=0.0, foreach=False),
        "foreach": torch.optim.AdamW(parameter_groups(model.student), lr=0.0, foreach=True),
        "fused": build_optimizer(model.student, (0.9, 0.999)),
    }
    for optimizer in optimizers.values():
        set_rates(optimizer, 1e-6, 0.04)
    forms = {
        ("clip", "loop"): lambda: clip_in_a_loop(gradients),
        ("clip", "foreach"): lambda: clip_per_parameter(gradients, CLIP),
        ("optimizer", "loop"): optimizers["loop"].step,
        ("optimizer", "foreach"): optimizers["foreach"].step,
        ("optimizer", "fused"): optimizers["fused"].step,
        ("teacher", "loop"): lambda: follow_in_a_loop(model.student, model.teacher),
        ("teacher", "foreach"): lambda: update_teacher(model.student, model.teacher, MOMENTUM),
    }
    found = {name: seconds(form, options.repeats) for name, form in forms.items()}
    ours = found["clip", "foreach"] + found["optimizer", "fused"] + found["teacher", "foreach"]
    print(f"forward and backward pass of {options.batch} images: {1000 * step:.0f} ms")
    for (what, form), value in found.items():
        print(f"{what:10}{form:9}{1000 * value:8.1f} ms{value / found[what, 'loop']:8.2f}×{100 * value / (step + ours):7.1f} %")
    print(f"ours together: {1000 * ours:.1f} ms, {100 * ours / (step + ours):.1f} % of the step")


if __name__ == "__main__":
    main()
