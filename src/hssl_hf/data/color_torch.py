"""The color operations in floating point, for a batch at once on its device."""

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import rgb_to_grayscale

from hssl_hf.data.color import GRAY, NEUTRAL, ORDER, SIGMA, SOLARIZE, STRENGTHS


def apply_color_ops(pixels: Tensor, drawn: Tensor, mean, std) -> Tensor:
    """Apply drawn operations to a batch and normalize it.

    Args:
        pixels: (V, B, C, H, W) uint8.
        drawn: (V, B, 11) on the host, as `draw_colors` gives them.
        mean, std: C numbers each, on values in [0, 1].
    Returns:
        (V, B, C, H, W) float32.
    """
    mean, std = (torch.tensor(values, device=pixels.device).view(-1, 1, 1) for values in (mean, std))
    images = pixels.flatten(0, 1).float().div_(255)
    operate(images, drawn.flatten(0, 1).numpy())
    return images.sub_(mean).div_(std).view(pixels.shape)


def operate(images: Tensor, drawn: np.ndarray) -> None:
    """Apply the drawn operations (N, 11) to images (N, C, H, W) in [0, 1], in place."""
    for position in range(4):
        for operation, jitter in enumerate(JITTERS):
            strengths = drawn[:, STRENGTHS][:, operation]
            chosen = (drawn[:, ORDER][:, position] == operation) & (strengths != NEUTRAL[operation])
            _apply(images, chosen, jitter, strengths)
    _apply(images, drawn[:, GRAY] > 0, lambda x, _: gray(x).expand_as(x), drawn[:, GRAY])
    _apply(images, drawn[:, SIGMA] > 0, partial(blur, radius=math.ceil(3 * drawn[:, SIGMA].max())), drawn[:, SIGMA])
    _apply(images, drawn[:, SOLARIZE] > 0, lambda x, _: 0.5 - (x - 0.5).abs_(), drawn[:, SOLARIZE])


def _apply(images: Tensor, chosen: np.ndarray, operation, strengths: np.ndarray) -> None:
    """Replace the chosen images by the operation's result; chosen and strengths live on the host."""
    if not chosen.any():
        return
    strengths = torch.from_numpy(strengths[chosen]).to(images.device, non_blocking=True).view(-1, 1, 1, 1)
    indices = torch.from_numpy(np.flatnonzero(chosen)).to(images.device, non_blocking=True)
    images.index_copy_(0, indices, operation(images.index_select(0, indices), strengths))


def gray(images: Tensor) -> Tensor:
    """(N, 1, H, W): luminance of red, green and blue, the mean of other numbers of channels."""
    return rgb_to_grayscale(images) if images.shape[1] == 3 else images.mean(1, keepdim=True)


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    return (images * factors).clamp_(0, 1)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    return (images * factors).add_(gray(images).mean((-1, -2, -3), keepdim=True) * (1 - factors)).clamp_(0, 1)


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    return torch.lerp(gray(images), images, factors).clamp_(0, 1)


def hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Turn the hue by `shifts` (in turns), with value and chroma kept."""
    red, green, blue = images.split(1, dim=1)
    value = images.amax(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    scale = 1 / chroma.clamp(min=1e-8)
    sector = torch.where(
        value == red, (green - blue) * scale, torch.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4)
    )
    phase = (sector + 6 * shifts + images.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)) % 6
    return value - chroma * torch.minimum(phase, 4 - phase).clamp_(0, 1)


def blur(images: Tensor, sigmas: Tensor, radius: int) -> Tensor:
    """Gaussian blur with a sigma (in pixels) of its own for every image, cut off at three sigma, reflected at the borders.

    Args:
        radius: the largest cut.
    """
    rows, columns = (_blur_matrices(size, sigmas.flatten(), min(radius, size - 1)) for size in images.shape[-2:])
    return rows @ images @ columns.transpose(-1, -2)


def _blur_matrices(size: int, sigmas: Tensor, radius: int) -> Tensor:
    """(N, 1, size, size): what every pixel of a line takes from every other."""
    offsets = torch.arange(-radius, radius + 1, device=sigmas.device)
    weights = torch.exp(-0.5 * (offsets / sigmas[:, None]) ** 2) * (offsets.abs() <= (3 * sigmas[:, None]).ceil())
    weights = (weights / weights.sum(1, keepdim=True))[:, None].expand(-1, size, -1)
    sources = (torch.arange(size, device=sigmas.device)[:, None] + offsets).abs()
    sources = torch.where(sources >= size, 2 * size - 2 - sources, sources).expand(len(sigmas), -1, -1)
    return weights.new_zeros(len(sigmas), 1, size, size).scatter_add_(3, sources[:, None], weights[:, None])


JITTERS = (brightness, contrast, saturation, hue)
