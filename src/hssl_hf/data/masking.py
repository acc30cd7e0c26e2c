"""Masks: which patches the student does not see.

Every mask is a pure function of (grid, ratio, generator): the patches (h, w) of a view, the fraction of them to mask in [0, 1],
and the source of randomness. It returns (h, w) bool, True = masked.
"""

import math
from collections.abc import Sequence

import numpy as np

ATTEMPTS_PER_BLOCK = 10
ASPECT_RATIOS = (0.3, 1 / 0.3)


def draw_ratio(ratios: Sequence[float], ratio_jitter: Sequence[float], generator: np.random.Generator) -> float:
    """Draw one of the ratios, each widened to a uniform range of `ratio ± spread`, with equal chance.

    With ratios (0, .3) and ratio_jitter (0, .2) half of the crops stay unmasked and the others hide U(.1, .5) of their patches.
    Source: iBOT, arXiv 2111.07832, appendix; `pred_ratio` and `pred_ratio_var` of its code.
    """
    index = generator.integers(len(ratios))
    return float(generator.uniform(ratios[index] - ratio_jitter[index], ratios[index] + ratio_jitter[index]))


def random_mask(grid: tuple[int, int], ratio: float, generator: np.random.Generator) -> np.ndarray:
    """Mask exactly int(ratio * h * w) patches, each with equal chance."""
    mask = np.zeros(grid, dtype=bool)
    mask.flat[generator.permutation(mask.size)[: int(ratio * mask.size)]] = True
    return mask


def block_mask(grid: tuple[int, int], ratio: float, generator: np.random.Generator) -> np.ndarray:
    """Mask rectangular blocks until no further block fits under `ratio * h * w` patches.

    Every block draws its area from U(low, patches left), with low = (min(h, w) // 3)², and its aspect ratio log-uniformly
    from (0.3, 1/0.3); it is taken if it leaves a border and hides at least one new patch without exceeding the target. After
    ten blocks in a row that do not fit the mask is finished, so that the masked fraction stays a little under the ratio.

    Source: iBOT's block-wise sampler; BEiT, arXiv 2106.08254, algorithm 1.
    """
    return _mask_blocks(grid, ratio * math.prod(grid), generator)


def fixed_count_block_mask(grid: tuple[int, int], ratio: float, generator: np.random.Generator) -> np.ndarray:
    """Mask exactly round(ratio * h * w) patches: blocks as in `block_mask`, then single patches, each with equal chance.

    Blocks cannot cross the border, so that the middle of the grid is masked far more often than its corners.

    Source: released SiameseIM code.
    Differs: that the count is made up with single patches is not in the paper.
    """
    target = round(ratio * math.prod(grid))
    mask = _mask_blocks(grid, target, generator)
    unmasked = np.flatnonzero(~mask)
    mask.flat[generator.permutation(unmasked)[: target - int(mask.sum())]] = True
    return mask


def _mask_blocks(grid: tuple[int, int], target: float, generator: np.random.Generator) -> np.ndarray:
    height, width = grid
    mask, masked, attempts = np.zeros(grid, dtype=bool), 0, 0
    smallest = (min(height, width) // 3) ** 2
    low_aspect, high_aspect = map(math.log, ASPECT_RATIOS)
    while masked < target and attempts < ATTEMPTS_PER_BLOCK:
        attempts += 1
        left = target - masked
        area = smallest + (left - smallest) * generator.random()
        aspect = math.exp(low_aspect + (high_aspect - low_aspect) * generator.random())
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            top, side = generator.integers(height - h + 1), generator.integers(width - w + 1)
            block = mask[top : top + h, side : side + w]
            new = block.size - int(block.sum())
            if 0 < new <= left:
                block[:] = True
                masked, attempts = masked + new, 0
    return mask


MASKS = {"block": block_mask, "fixed_count_block": fixed_count_block_mask, "random": random_mask}
