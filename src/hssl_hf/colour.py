"""Colour operations of the views, batched: drawn per view by the workers, applied to a whole batch on the device.

An operation is drawn as numbers, so that applying it has no randomness left. Each follows torchvision's definition.
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)
ORDER, BRIGHTNESS, CONTRAST, SATURATION, HUE, GREY, SIGMA, SOLARIZE = slice(0, 4), 4, 5, 6, 7, 8, 9, 10
WIDTH = 11


@dataclass(frozen=True)
class ColourJitter:
    """Strengths of the four jitters, and the chance that they are applied: factors from U(1 - s, 1 + s), hue from U(-s, s)."""

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    probability: float = 0.8


def draw_colour(config, blur: float, solarize: float, generator: np.random.Generator) -> Tensor:
    """Draw the colour operations of one view.

    Args:
        config: a `ViewConfig`.
        blur, solarize: chances for this view.
    Returns:
        (11,) float32: order of the four jitters, their strengths, grey or not, sigma of the blur (0 = none), solarized or not.
    """
    jitter, chance = config.jitter, generator.random(8)
    drawn = np.empty(WIDTH, dtype=np.float32)
    drawn[ORDER] = generator.permutation(4)
    strength = 2 * chance[:4] - 1 if chance[4] < jitter.probability else (0.0, 0.0, 0.0, 0.0)
    drawn[BRIGHTNESS] = 1 + jitter.brightness * strength[0]
    drawn[CONTRAST] = 1 + jitter.contrast * strength[1]
    drawn[SATURATION] = 1 + jitter.saturation * strength[2]
    drawn[HUE] = jitter.hue * strength[3]
    drawn[GREY] = chance[5] < config.grey_probability
    drawn[SIGMA] = generator.uniform(*config.blur_sigma) if chance[6] < blur else 0
    drawn[SOLARIZE] = chance[7] < solarize
    return torch.from_numpy(drawn)


def colour(pixels: Tensor, drawn: Tensor, mean, std) -> Tensor:
    """Apply drawn operations to a batch and normalise it.

    Args:
        pixels: (V, B, 3, H, W) uint8.
        drawn: (V, B, 11) on the host, as `draw_colour` gives them.
        mean, std: three numbers each, on values in [0, 1].
    Returns:
        (V, B, 3, H, W) float32.
    """
    images = pixels.flatten(0, 1).float().div_(255)
    drawn = drawn.flatten(0, 1)
    for place in range(4):
        for operation, column in enumerate((BRIGHTNESS, CONTRAST, SATURATION, HUE)):
            neutral = 0 if column == HUE else 1
            _apply(
                images,
                (drawn[:, place] == operation) & (drawn[:, column] != neutral),
                JITTERS[operation],
                drawn[:, column],
            )
    _apply(images, drawn[:, GREY] > 0, lambda x, _: grey(x).expand_as(x), drawn[:, GREY])
    radius = math.ceil(3 * drawn[:, SIGMA].max().item())
    _apply(images, drawn[:, SIGMA] > 0, partial(blur, radius=radius), drawn[:, SIGMA])
    _apply(images, drawn[:, SOLARIZE] > 0, lambda x, _: torch.where(x >= 0.5, 1 - x, x), drawn[:, SOLARIZE])
    shape = (3, 1, 1)
    images.sub_(images.new_tensor(mean).view(shape)).div_(images.new_tensor(std).view(shape))
    return images.view(pixels.shape)


def _apply(images: Tensor, chosen: Tensor, operation, strengths: Tensor) -> None:
    """Replace the chosen images by the operation's result; chosen and strengths live on the host."""
    indices = chosen.nonzero().flatten()
    if len(indices):
        strengths = strengths[indices].to(images.device, non_blocking=True).view(-1, 1, 1, 1)
        indices = indices.to(images.device, non_blocking=True)
        images.index_copy_(0, indices, operation(images.index_select(0, indices), strengths))


def grey(images: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 1, H, W) luma."""
    return torch.einsum("nchw,c->nhw", images, images.new_tensor(LUMA)).unsqueeze(1)


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    return (images * factors).clamp_(0, 1)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    return torch.lerp(grey(images).mean((-1, -2, -3), keepdim=True), images, factors).clamp_(0, 1)


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    return torch.lerp(grey(images), images, factors).clamp_(0, 1)


def hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Turn the hue by `shifts` (in turns), with value and chroma kept."""
    red, green, blue = images.unbind(1)
    value, chroma = images.amax(1), images.amax(1) - images.amin(1)
    scale = 1 / chroma.clamp(min=1e-8)
    sector = torch.where(
        value == red,
        (green - blue) * scale,
        torch.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4),
    )
    sector = sector.unsqueeze(1) + 6 * shifts
    phase = (sector + images.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)) % 6
    return value.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(phase, 4 - phase).clamp_(0, 1)


def blur(images: Tensor, sigmas: Tensor, radius: int) -> Tensor:
    """Gaussian blur with a sigma (in pixels) of its own for every image, cut off at `radius`, reflected at the borders."""
    count, _, height, width = images.shape
    radius = min(radius, height - 1, width - 1)
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernels = torch.exp(-0.5 * (offsets / sigmas.view(-1, 1)) ** 2)
    kernels = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(3, 0)  # (3N, taps)
    rows = F.pad(images, (radius,) * 4, mode="reflect").view(1, 3 * count, height + 2 * radius, width + 2 * radius)
    rows = F.conv2d(rows, kernels[:, None, :, None], groups=3 * count)
    return F.conv2d(rows, kernels[:, None, None, :], groups=3 * count).view_as(images)


JITTERS = (brightness, contrast, saturation, hue)
