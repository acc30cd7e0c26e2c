"""UniGrad on dense features: predictions come near their targets and away from all targets of the batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hssl_hf.objectives.supervision import ObjectiveOutput, average_over_processes


def unigrad(prediction: Tensor, target: Tensor, negative_weight: float) -> ObjectiveOutput:
    """L = 1/D * (mean |p - z|² + lambda * mean p^T C p), with C = mean z z^T over all targets of all processes.

    The second term is the mean of rowsum((P C) * P): memory and time grow linearly with the number of tokens.

    Args:
        prediction: (M, D), of the student.
        target: (M, D) of the teacher, normalized to squared length D; they carry no gradient.
        negative_weight: lambda.
    Returns:
        loss, its terms `positive` and `negative` (already weighted), and the metric `collapse`, the fraction of the targets'
        energy that is common to all of them: near 0 while they differ, 1 if the teacher has collapsed.
    Source: SiameseIM, equation 4.
    Differs: the paper subtracts the squared distance (a misprint) and sums over the negatives; the released code adds it, takes
        means, and divides all by D.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        prediction, target = prediction.float(), target.detach().float()
        width = prediction.shape[1]
        statistics = torch.cat([target.T @ target, target.sum(0, keepdim=True)]) / len(target)
        average_over_processes(statistics)
        covariance, mean = statistics[:-1], statistics[-1]
        positive = F.mse_loss(prediction, target)
        negative = negative_weight * ((prediction @ covariance) * prediction).sum(1).mean() / width
    losses = {"positive": positive, "negative": negative}
    return ObjectiveOutput(positive + negative, losses, {"collapse": mean.square().sum() / covariance.trace()})


def normalize_targets(target: Tensor, rule: str) -> Tensor:
    """(..., D) -> (..., D) of squared length D.

    Args:
        rule: "layer_norm", mean 0 and variance 1 over the channels (without scale and shift, epsilon 1e-5), or "l2", the
            direction alone.
    Source: SiameseIM, section 3.2 and Table 3.
    """
    if rule == "layer_norm":
        return F.layer_norm(target.float(), target.shape[-1:])
    return F.normalize(target.float(), dim=-1) * target.shape[-1] ** 0.5
