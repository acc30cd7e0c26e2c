"""The color operations on a processor: one 8-bit image at a time, by OpenCV.

As in the original recipes, which run on Pillow images, every operation rounds to 8 bits and hue has 256 steps. On other devices
`color_torch.py` does the same in floating point for a batch.
"""

import math

import cv2
import numpy as np
import torch
from torch import Tensor

from hssl_hf.data.color import GRAY, NEUTRAL, ORDER, SIGMA, SOLARIZE, STRENGTHS

cv2.setNumThreads(1)  # processes are many already: workers, or ranks


def apply_color_ops(pixels: Tensor, drawn: Tensor, mean, std) -> Tensor:
    """As `color_torch.apply_color_ops`; fastest for pixels with channels last in memory."""
    levels = np.arange(256) / 255
    tables = [((levels - m) / s).astype(np.float32) for m, s in zip(mean, std, strict=True)]
    colored = torch.empty(pixels.shape)
    images = pixels.permute(0, 1, 3, 4, 2).contiguous().flatten(0, 1).numpy()
    targets = colored.flatten(0, 1).numpy()
    for image, numbers, target in zip(images, drawn.flatten(0, 1).numpy(), targets, strict=True):
        for channel, table, output in zip(cv2.split(operate(image, numbers)), tables, target, strict=True):
            cv2.LUT(channel, table, dst=output)
    return colored


def operate(image: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Apply the drawn operations (11,) to an image (H, W, C) uint8; OpenCV leaves out an axis of one channel."""
    strengths = drawn[STRENGTHS]
    for operation in drawn[ORDER].astype(int):
        if strengths[operation] != NEUTRAL[operation]:
            image = JITTERS[operation](image, float(strengths[operation]))
    if drawn[GRAY]:
        image = gray(image)
    if drawn[SIGMA]:
        image = blur(image, float(drawn[SIGMA]))
    return cv2.LUT(image, SOLARIZED) if drawn[SOLARIZE] else image


def gray(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.addWeighted(image, factor, image, 0, 0)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    rgb = image.ndim == 3 and image.shape[2] == 3
    mean = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] if rgb else image.mean()
    return cv2.addWeighted(image, factor, image, 0, mean * (1 - factor))


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.addWeighted(image, factor, gray(image), 1 - factor, 0)


def hue(image: np.ndarray, shift: float) -> np.ndarray:
    turned = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    turned[..., 0] += np.uint8(round(256 * shift) % 256)
    return cv2.cvtColor(turned, cv2.COLOR_HSV2RGB_FULL)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    radius = min(math.ceil(3 * sigma), min(image.shape[:2]) - 1)
    kernel = cv2.getGaussianKernel(2 * radius + 1, sigma, cv2.CV_32F)
    return cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)


JITTERS = (brightness, contrast, saturation, hue)
SOLARIZED = np.where(np.arange(256) >= 128, 255 - np.arange(256), np.arange(256)).astype(np.uint8)
