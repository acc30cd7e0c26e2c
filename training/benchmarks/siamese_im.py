"""SiameseIM's loss as a row sum against its M × M form: time and peak memory of the loss and of a full step.

    python -m training.benchmarks.siamese_im

Every figure comes from a process of its own; the last two columns are ratios. Views have 224 pixels, the
network 96 channels and 4 + 1 + 2 blocks.
"""

import itertools

import torch
from torch import Tensor

from hssl_hf import SiameseIMConfig, SiameseIMForPreTraining
from hssl_hf.models import modeling_siamese_im
from hssl_hf.objectives import ObjectiveOutput, unigrad
from training.benchmarks.harness import benchmark_parser, isolated, measure

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


def measure_variant(scope: str, form: str, batch: int, repeats: int) -> dict[str, float]:
    """Cost of the loss or of a full step, forward and backward."""
    torch.manual_seed(0)
    if scope == "loss":
        prediction = torch.randn(batch * SIDE**2, WIDTH, requires_grad=True)
        target = torch.randn(batch * SIDE**2, WIDTH)
        return measure(lambda: LOSSES[form](prediction, target, LAMBDA).loss.backward(), repeats)
    modeling_siamese_im.unigrad = LOSSES[form]
    kwargs = {"embed_dim": WIDTH, "depth": 4, "num_heads": 3}
    decoder = {"decoder_num_attention_heads": 3, "decoder_num_hidden_layers": 2}
    model = SiameseIMForPreTraining(SiameseIMConfig(backbone_kwargs=kwargs, projector_depth=1, **decoder)).train()
    masks = (torch.rand(batch, SIDE**2).argsort(1) < 118).view(1, batch, SIDE, SIDE)
    indices = masks.flatten().nonzero().flatten()
    pixels, crops = torch.randn(2, batch, 3, 224, 224), torch.tensor([0.0, 0, 100, 100, 0]).expand(2, batch, 5)
    return measure(lambda: model(pixels, masks, indices, crops).loss.backward(), repeats)


def main() -> None:
    options = benchmark_parser(__doc__, repeats=5).parse_args()
    print(f"{'':6}{'batch':>6}{'rows s':>10}{'square s':>10}{'rows MiB':>10}{'square MiB':>12}{'time':>8}{'memory':>8}")
    for scope, batch in itertools.product(("loss", "step"), BATCHES):
        rows, square = (isolated(measure_variant, scope, form, batch, options.repeats) for form in LOSSES)
        time, memory = (rows[unit] / square[unit] for unit in ("seconds", "mebibytes"))
        cells = f"{rows['seconds']:10.4f}{square['seconds']:10.4f}{rows['mebibytes']:10.1f}{square['mebibytes']:12.1f}"
        print(f"{scope:6}{batch:6}{cells}{time:7.2f}×{memory:7.2f}×", flush=True)


if __name__ == "__main__":
    main()
