"""UniGrad on dense features: predictions come near their targets and away from all targets of the batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hssl_hf.modules.projection_heads import BatchNorm
from hssl_hf.objectives.supervision import ObjectiveOutput, average_over_processes


def unigrad(prediction: Tensor, target: Tensor, negative_weight: float) -> ObjectiveOutput:
    """L = 1/D * (mean |p - z|² + lambda * mean p^T C p), with C = mean z z^T over all targets of all processes.

    The second term is the mean of rowsum((P C) * P): memory and time grow linearly with the number of tokens.

    Args:
        prediction: (M, D), of the student.
        target: (M, D) of the teacher, normalized by `normalize`; they carry no gradient.
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


def normalize(features: Tensor, rule: str) -> Tensor:
    """(..., D) -> (..., D) normalized without learned scale and shift.

    Args:
        rule: "layer_norm", mean 0 and variance 1 over the channels (epsilon 1e-5), so that the squared length is D; or
            "batch_norm_l2", first mean 0 and variance 1 of every channel over all other positions and all processes, then
            length 1.
    Source: SiameseIM, sections 4.1 and 4.3; Table 3, whose footnote calls them MAE-like (targets) and MoCo-like (both sides).
    """
    features = features.float()
    if rule == "layer_norm":
        return F.layer_norm(features, features.shape[-1:])
    batch_norm = BatchNorm(features.shape[-1], affine=False, track_running_stats=False)
    return F.normalize(batch_norm(features.flatten(0, -2)).view_as(features), dim=-1)
