"""MAE: predict the pixels of the masked patches."""

import torch.nn.functional as F
from torch import Tensor

from hssl_hf.objectives.supervision import ObjectiveOutput


def pixel_targets(pixels: Tensor, patch: tuple[int, int], normalize: bool) -> Tensor:
    """Images cut into patches.

    Args:
        pixels: (B, C, H, W) normalized images.
        patch: (p, q) height and width of a patch in pixels.
        normalize: mean 0 and variance 1 within every patch.
    Returns:
        (B, N, p * q * C) in row-major order, channels last, as in MAE.
    Source: MAE, arXiv 2111.06377, section 3; variance unbiased, epsilon 1e-6, as in its code.
    """
    height, width = patch
    pieces = pixels.unflatten(3, (-1, width)).unflatten(2, (-1, height)).permute(0, 2, 4, 3, 5, 1)
    target = pieces.flatten(3).flatten(1, 2).float()
    if not normalize:
        return target
    return (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()


def reconstruction(prediction: Tensor, target: Tensor) -> ObjectiveOutput:
    """Mean squared error of (..., D) predictions. Source: MAE, arXiv 2111.06377, section 3."""
    loss = F.mse_loss(prediction.float(), target.float())
    return ObjectiveOutput(loss, {"reconstruction": loss})
