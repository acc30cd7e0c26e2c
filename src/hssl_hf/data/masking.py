"""Masks: which patches the student does not see. Pure functions of (grid, ratio, generator); True = masked."""

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
    """Mask exactly int(ratio * h * w) patches, each with equal chance.

    Args:
        grid: (h, w) in patches.
        ratio: share to hide, in [0, 1].
    Returns:
        (h, w) bool, True = masked.
    """
    count = grid[0] * grid[1]
    mask = np.zeros(count, dtype=bool)
    mask[generator.permutation(count)[: int(ratio * count)]] = True
    return mask.reshape(grid)


def block_mask(grid: tuple[int, int], ratio: float, generator: np.random.Generator) -> np.ndarray:
    """Mask rectangular blocks until no further block fits under `ratio * h * w` patches.

    Every block draws its area from U(low, patches left), with low = (min(h, w) // 3)², and its aspect ratio log-uniformly
    from (0.3, 1/0.3); it is taken if it leaves a border and hides at least one new patch without exceeding the target. After
    ten blocks in a row that do not fit the mask is finished, so that the masked fraction stays a little under the ratio.

    Args:
        grid: (h, w) in patches.
        ratio: share to hide at most, in [0, 1].
    Returns:
        (h, w) bool, True = masked.
    Source: iBOT's block-wise sampler; BEiT, arXiv 2106.08254, algorithm 1.
    """
    mask = np.zeros(grid, dtype=bool)
    _hide_blocks(mask, ratio * mask.size, generator)
    return mask


def fixed_count_block_mask(grid: tuple[int, int], ratio: float, generator: np.random.Generator) -> np.ndarray:
    """Mask exactly round(ratio * h * w) patches: blocks as in `block_mask`, then single patches, each with equal chance.

    Blocks cannot cross the border, so that the middle of the grid is masked far more often than its corners.

    Args:
        grid: (h, w) in patches.
        ratio: share to hide, in [0, 1].
    Returns:
        (h, w) bool, True = masked.
    Source: released SiameseIM code.
    Differs: that the count is made up with single patches is not in the paper.
    """
    mask = np.zeros(grid, dtype=bool)
    target = round(ratio * mask.size)
    _hide_blocks(mask, target, generator)
    free = np.flatnonzero(~mask)
    mask.flat[generator.permutation(free)[: target - int(mask.sum())]] = True
    return mask


def _hide_blocks(mask: np.ndarray, target: float, generator: np.random.Generator) -> None:
    height, width = mask.shape
    masked = 0
    smallest = (min(height, width) // 3) ** 2
    low_aspect, high_aspect = map(math.log, ASPECT_RATIOS)
    while masked < target:
        for _ in range(ATTEMPTS_PER_BLOCK):
            left = target - masked
            area = smallest + (left - smallest) * generator.random()
            aspect = math.exp(low_aspect + (high_aspect - low_aspect) * generator.random())
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (0 < h < height and 0 < w < width):
                continue
            top, side = generator.integers(height - h + 1), generator.integers(width - w + 1)
            block = mask[top : top + h, side : side + w]
            new = block.size - int(block.sum())
            if 0 < new <= left:
                block[:] = True
                masked += new
                break
        else:
            break


MASKS = {"block": block_mask, "fixed_count_block": fixed_count_block_mask, "random": random_mask}
