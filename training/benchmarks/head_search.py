"""Six candidates at once against one auxiliary head: time and memory of a full step.

    python -m training.benchmarks.head_search [--batch 12]

iBOT, ViT-S/16, 2×224 and 10×96 pixels, fp32, one thread of a CPU; forward, backward and the teacher's update. Candidates of one
block, as a search has them by default, and of three, as a head has in training.
"""

import torch

from hssl_hf import HeadSearchConfig, HeadSearchForPreTraining, HSSLConfig, HSSLForPreTraining
from training.benchmarks.harness import benchmark_parser, isolated, measure
from training.benchmarks.reference_ibot import make_views

VARIANTS = {"one head": (HSSLForPreTraining, HSSLConfig), "six heads": (HeadSearchForPreTraining, HeadSearchConfig)}


def measure_variant(variant: str, depth: int, images: int, repeats: int) -> dict[str, float]:
    torch.manual_seed(0)
    model_class, config_class = VARIANTS[variant]
    model = model_class(config_class(auxiliary_depth=depth)).train()
    views = make_views(images)

    def step() -> None:
        model(*views, teacher_temperature=0.04).loss.backward()
        model.zero_grad()
        model.update_teacher(0.996)

    return measure(step, repeats)


def main() -> None:
    options = benchmark_parser(__doc__, repeats=2, batch=12).parse_args()
    print(f"{options.batch} images\n{'':22}{'seconds':>10}{'MiB':>9}")
    for depth in (1, 3):
        costs = {variant: isolated(measure_variant, variant, depth, options.batch, options.repeats) for variant in VARIANTS}
        for variant, cost in costs.items():
            print(f"{variant + f', depth {depth}':22}{cost['seconds']:10.2f}{cost['mebibytes']:9.0f}")
        one, six = costs.values()
        print(f"{'ratio':22}{six['seconds'] / one['seconds']:9.2f}×{six['mebibytes'] / one['mebibytes']:8.2f}×")


if __name__ == "__main__":
    main()
