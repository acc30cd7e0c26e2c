"""Six candidates at once against one auxiliary head: time and memory of a full step.

    python -m training.benchmarks.head_search [--batch 12]

iBOT, ViT-S/16, 2×224 and 10×96 pixels, fp32, one thread of a CPU; forward, backward and the teacher's update. Candidates of one
block, as a search has them by default, and of three, as a head has in training.
"""

import json

import torch

from hssl_hf import HeadSearchConfig, HeadSearchForPreTraining, HSSLConfig, HSSLForPreTraining
from training.benchmarks.harness import measure, parse, run_variant
from training.benchmarks.reference_ibot import make_views

VARIANTS = {
    "one head": lambda depth: HSSLForPreTraining(HSSLConfig(auxiliary_depth=depth)),
    "six heads": lambda depth: HeadSearchForPreTraining(HeadSearchConfig(auxiliary_depth=depth)),
}


def make_step(variant: str, depth: int, images: int):
    torch.manual_seed(0)
    model = VARIANTS[variant](depth).train()
    globals_, locals_, masks = make_views(images)

    def step() -> None:
        model(globals_, locals_, masks, teacher_temperature=0.04).loss.backward()
        model.zero_grad()
        model.update_teacher(0.996)

    return step


def main() -> None:
    options = parse(__doc__, repeats=2, batch=(12, "images"))
    if options.variant:
        variant, depth, images = options.variant
        print(json.dumps(measure(make_step(variant, int(depth), int(images)), options.repeats)))
        return
    print(f"{options.batch} images\n{'':22}{'seconds':>10}{'MiB':>9}")
    for depth in (1, 3):
        found = {variant: run_variant(__file__, [variant, depth, options.batch], options.repeats) for variant in VARIANTS}
        for variant, result in found.items():
            print(f"{variant + f', depth {depth}':22}{result['seconds']:10.2f}{result['mebibytes']:9.0f}")
        one, six = found.values()
        print(f"{'ratio':22}{six['seconds'] / one['seconds']:9.2f}×{six['mebibytes'] / one['mebibytes']:8.2f}×")


if __name__ == "__main__":
    main()
