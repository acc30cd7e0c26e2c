"""SiameseIM's loss as a row sum against its M × M form: time and peak memory of the loss and of a full step.

    python -m training.benchmarks.siamese_im

Every figure comes from a process of its own, all in one run; the last two columns are ratios. Views have 224 pixels, the
network 96 channels and 4 + 1 + 2 blocks.
"""

import json

import torch
from torch import Tensor

from hssl_hf import SiameseIMConfig, SiameseIMForPreTraining
from hssl_hf.models import modeling_siamese_im
from hssl_hf.objectives import ObjectiveOutput, unigrad
from training.benchmarks.harness import measure, parse, run_variant

BATCHES = (8, 16, 32, 64)
SIDE, WIDTH, LAMBDA = 14, 96, 0.02


def square(prediction: Tensor, target: Tensor, negative_weight: float) -> ObjectiveOutput:
    """The loss as equation 4 is written, with all pairs of tokens in one matrix."""
    prediction, target = prediction.float(), target.float()
    positive = (prediction - target).square().mean()
    covariance = target.T @ target / len(target)
    negative = negative_weight * (prediction @ covariance @ prediction.T).diagonal().mean() / prediction.shape[1]
    return ObjectiveOutput(positive + negative, {"positive": positive, "negative": negative, "collapse": negative})


LOSSES = {"rows": unigrad, "square": square}


def make_step(what: str, form: str, batch: int):
    """A function that runs the loss, or a full step, forward and backward."""
    torch.manual_seed(0)
    if what == "loss":
        prediction = torch.randn(batch * SIDE**2, WIDTH, requires_grad=True)
        target = torch.randn(batch * SIDE**2, WIDTH)
        return lambda: LOSSES[form](prediction, target, LAMBDA).loss.backward()
    modeling_siamese_im.unigrad = LOSSES[form]
    kwargs = {"embed_dim": WIDTH, "depth": 4, "num_heads": 3}
    config = SiameseIMConfig(
        backbone_kwargs=kwargs, decoder_num_attention_heads=3, projector_depth=1, decoder_num_hidden_layers=2
    )
    model = SiameseIMForPreTraining(config).train()
    masks = (torch.rand(batch, SIDE**2).argsort(1) < 118).view(1, batch, SIDE, SIDE)
    indices = masks.flatten().nonzero().flatten()
    pixels, crops = torch.randn(2, batch, 3, 224, 224), torch.tensor([0.0, 0, 100, 100, 0]).expand(2, batch, 5)
    return lambda: model(pixels, masks, indices, crops).loss.backward()


def main() -> None:
    options = parse(__doc__, repeats=5)
    if options.variant:
        what, form, batch = options.variant
        print(json.dumps(measure(make_step(what, form, int(batch)), options.repeats)))
        return
    print(f"{'':6}{'batch':>6}{'rows s':>10}{'square s':>10}{'rows MiB':>10}{'square MiB':>12}{'time':>8}{'memory':>8}")
    for what in ("loss", "step"):
        for batch in BATCHES:
            found = {form: run_variant(__file__, [what, form, batch], options.repeats) for form in LOSSES}
            rows, square = found["rows"], found["square"]
            ratios = rows["seconds"] / square["seconds"], rows["mebibytes"] / square["mebibytes"]
            print(
                f"{what:6}{batch:6}{rows['seconds']:10.4f}{square['seconds']:10.4f}{rows['mebibytes']:10.1f}"
                f"{square['mebibytes']:12.1f}{ratios[0]:7.2f}×{ratios[1]:7.2f}×"
            )


if __name__ == "__main__":
    main()
