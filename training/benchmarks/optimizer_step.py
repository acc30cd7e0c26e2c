"""Clipping, optimizer and teacher update: loops over parameters against our forms, and their fraction of a step.

    python -m training.benchmarks.optimizer_step [--batch 8]

ViT-S/16 with a ConvNeXt head of depth 3, one thread of a CPU, fp32 weights.
"""

import timm
import torch

from hssl_hf import HSSLConfig, HSSLForPreTraining
from hssl_hf.engine.optim import build_optimizer, clip_per_parameter, parameter_groups, set_rates
from hssl_hf.modules.ema import trainable_pairs, update_teacher
from training.benchmarks.harness import benchmark_parser, seconds
from training.benchmarks.reference_ibot import CLIP, MOMENTUM, clip_in_a_loop, make_views, update_teacher_in_a_loop


def main() -> None:
    options = benchmark_parser(__doc__, repeats=9, batch=8).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    timm.layers.set_fused_attn(False)  # as the trainer does in bf16, where the fused backward pass takes many times as long
    model = HSSLForPreTraining(HSSLConfig(norm_last_layer=False)).train()
    views = make_views(options.batch)

    def forward_and_backward() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(*views, teacher_temperature=0.04).loss
        loss.backward()

    step = seconds(forward_and_backward, 3)
    gradients = [p.grad for p in model.student.parameters() if p.grad is not None]
    pairs = list(trainable_pairs(model.student, model.teacher))
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
        ("teacher", "loop"): lambda: update_teacher_in_a_loop(pairs),
        ("teacher", "foreach"): lambda: update_teacher(model.student, model.teacher, MOMENTUM),
    }
    costs = {name: seconds(form, options.repeats) for name, form in forms.items()}
    ours = costs["clip", "foreach"] + costs["optimizer", "fused"] + costs["teacher", "foreach"]
    print(f"forward and backward pass of {options.batch} images: {1000 * step:.0f} ms")
    for (operation, form), value in costs.items():
        ratio, fraction = value / costs[operation, "loop"], value / (step + ours)
        print(f"{operation:10}{form:9}{1000 * value:8.1f} ms{ratio:8.2f}×{100 * fraction:7.1f} %")
    print(f"ours together: {1000 * ours:.1f} ms, {100 * ours / (step + ours):.1f} % of the step")


if __name__ == "__main__":
    main()
