"""Six candidates at once against one auxiliary head: time and memory of a whole step.

    python training/benchmarks/search.py [--batch 4]

iBOT, ViT-S/16, 2×224 and 10×96 pixels, heads of depth 3, fp32, one thread of a CPU; forward, backward and the teacher's update.
"""

import json

import torch
from arms import measure, parse, run_arm
from peers import make_views

from hssl_hf import HeadSearchConfig, HeadSearchForPreTraining, HSSLConfig, HSSLForPreTraining

ARMS = {
    "one head": lambda: HSSLForPreTraining(HSSLConfig()),
    "six heads": lambda: HeadSearchForPreTraining(HeadSearchConfig()),
}


def make_step(arm: str, images: int):
    torch.manual_seed(0)
    model = ARMS[arm]().train()
    globals_, locals_, masks = make_views(images)

    def step() -> None:
        model(globals_, locals_, masks, teacher_temperature=0.04).loss.backward()
        model.zero_grad()
        model.update_teacher(0.996)

    return step


def main() -> None:
    options = parse(__doc__, repeats=3, batch=(4, "images"))
    if options.arm:
        arm, images = options.arm
        print(json.dumps(measure(make_step(arm, int(images)), options.repeats)))
        return
    found = {arm: run_arm(__file__, [arm, options.batch], options.repeats) for arm in ARMS}
    print(f"{options.batch} images\n{'':12}{'seconds':>10}{'MiB':>9}")
    for arm, result in found.items():
        print(f"{arm:12}{result['seconds']:10.2f}{result['mebibytes']:9.0f}")
    one, six = found.values()
    print(f"{'ratio':12}{six['seconds'] / one['seconds']:9.2f}×{six['mebibytes'] / one['mebibytes']:8.2f}×")


if __name__ == "__main__":
    main()
