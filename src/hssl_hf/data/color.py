"""Color operations of the views, drawn by the workers as numbers, so that applying them is deterministic.

They are applied behind the loader, to a batch on a device (`color_torch.py`) or view by view on a processor
(`color_opencv.py`). Each follows torchvision's definition.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from hssl_hf.fields import Fraction, Range, Section

ORDER, BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAY, SIGMA, SOLARIZE = slice(0, 4), 4, 5, 6, 7, 8, 9, 10
STRENGTHS, NEUTRAL, WIDTH = slice(4, 8), (1.0, 1.0, 1.0, 0.0), 11


@dataclass(frozen=True)
class ColorJitter(Section):
    """Strengths of the four jitters, and the chance that they are applied: factors from U(1 - s, 1 + s), hue from U(-s, s)."""

    brightness: Fraction = 0.4
    contrast: Fraction = 0.4
    saturation: Fraction = 0.2
    hue: Annotated[float, Range(0, 0.5)] = 0.1
    probability: Fraction = 0.8


def draw_colors(config, blur: np.ndarray, solarize: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw the color operations of n views.

    Args:
        config: a `ViewConfig`.
        blur, solarize: (n,) chances of each view.
    Returns:
        (n, 11) float32: order of the four jitters, their strengths, gray or not, sigma of the blur (0 = none), solarized or
        not.
    """
    jitter, count = config.jitter, len(blur)
    chance, signs = generator.random((count, 4)), generator.uniform(-1, 1, (count, 4))
    sigma = generator.uniform(*config.blur_sigma, count)
    drawn = np.empty((count, WIDTH), dtype=np.float32)
    drawn[:, ORDER] = generator.permuted(np.tile(np.arange(4), (count, 1)), axis=1)
    strengths = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    drawn[:, STRENGTHS] = (chance[:, :1] < jitter.probability) * signs * strengths + NEUTRAL
    drawn[:, GRAY] = chance[:, 1] < config.gray_probability
    drawn[:, SIGMA] = (chance[:, 2] < blur) * sigma
    drawn[:, SOLARIZE] = chance[:, 3] < solarize
    return drawn
