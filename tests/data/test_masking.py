import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hssl_hf.data.masking import block_mask, draw_ratio, fixed_count_block_mask, random_mask

GRIDS = st.tuples(st.integers(2, 20), st.integers(2, 20))


@given(GRIDS, st.floats(0, 1), st.integers(0, 999))
def test_random_mask_hides_exactly_its_fraction(grid, ratio, seed):
    mask = random_mask(grid, ratio, np.random.default_rng(seed))
    assert mask.shape == grid and mask.sum() == int(ratio * grid[0] * grid[1])


@given(GRIDS, st.floats(0, 0.9), st.integers(0, 999))
def test_block_mask_never_exceeds_its_fraction(grid, ratio, seed):
    mask = block_mask(grid, ratio, np.random.default_rng(seed))
    assert mask.shape == grid and mask.dtype == bool and mask.sum() <= ratio * grid[0] * grid[1]


def draw(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.array([block_mask((14, 14), draw_ratio((0, 0.3), (0, 0.2), rng), rng) for _ in range(count)])


def test_block_masks_have_the_reference_statistics():
    """iBOT's loader on 14×14 patches: mean hidden fraction .1481 over all global crops, one half of them empty, and the
    quantiles .107, .291 and .474 of the others at 5, 50 and 95 % (official code, 20,000 crops)."""
    fractions = draw(12_000).mean((1, 2))
    hidden = fractions[fractions > 0]
    assert (fractions == 0).mean() == pytest.approx(0.4946, abs=0.015)
    assert fractions.mean() == pytest.approx(0.1481, abs=0.004)
    np.testing.assert_allclose(np.quantile(hidden, [0.05, 0.5, 0.95]), [0.1071, 0.2908, 0.4745], atol=0.012)


def test_block_masks_are_as_clustered_as_the_reference(golden):
    """Where blocks are: how often neighbors are hidden together, against masks of the official loader."""
    reference = golden("base_methods")["mask/block_global"].reshape(-1, 14, 14)
    ours = draw(4000)

    def clustering(masks):
        masks = masks[masks.mean((1, 2)) > 0.1]
        return (masks[:, 1:] == masks[:, :-1]).mean(), (masks[:, :, 1:] == masks[:, :, :-1]).mean()

    np.testing.assert_allclose(clustering(ours), clustering(reference), atol=0.05)
    scattered = np.array([random_mask((14, 14), 0.3, np.random.default_rng(i)) for i in range(200)])
    assert clustering(scattered)[0] < clustering(reference)[0] - 0.2


@given(GRIDS, st.floats(0, 1), st.integers(0, 999))
def test_fixed_count_block_mask_hides_exactly_its_fraction(grid, ratio, seed):
    mask = fixed_count_block_mask(grid, ratio, np.random.default_rng(seed))
    assert mask.shape == grid and mask.dtype == bool and mask.sum() == round(ratio * grid[0] * grid[1])


def test_fixed_count_block_masks_have_the_reference_statistics(golden):
    """Where patches are hidden, and how ragged masks are, against 20,000 official masks of 118 of 196 patches."""
    data, rng = golden("siameseim"), np.random.default_rng(0)
    masks = np.array([fixed_count_block_mask((14, 14), 0.6, rng) for _ in range(8000)])
    assert (masks.sum((1, 2)) == 118).all()
    frequency = masks.mean(0)
    np.testing.assert_allclose(frequency, data["mask/freq_n118_20000"], atol=0.03)
    assert frequency[0, 0] < 0.12 and frequency[6:8, 6:8].min() > 0.9, "the middle is hidden, the corners are seen"
    edges = np.array([(masks[:, 1:] != masks[:, :-1]).sum((1, 2)), (masks[:, :, 1:] != masks[:, :, :-1]).sum((1, 2))])
    np.testing.assert_allclose(sorted(edges.mean(1)), sorted(data["mask/edges_mean_n118"]), rtol=0.02)
    np.testing.assert_allclose(edges.std(1).mean(), data["mask/edges_std_n118"].mean(), rtol=0.05)


def test_fixed_count_block_masks_are_those_of_the_reference_before_single_patches_are_added(golden):
    """How many patches blocks alone hide: mean, least, most, fraction of full counts, standard deviation."""
    reference, rng = golden("siameseim")["mask/count_without_fixing"], np.random.default_rng(1)
    counts = np.array([block_mask((14, 14), 118.5 / 196, rng).sum() for _ in range(4000)])
    assert counts.mean() == pytest.approx(reference[0], abs=0.1) and counts.max() == reference[2]
    assert (counts == 118).mean() == pytest.approx(reference[3], abs=0.03)


class Scripted:
    """A source of randomness that draws given fractions for the area and the aspect ratio of every block, and corners."""

    def __init__(self, area: float, aspect: float):
        self.fractions = [area, aspect]

    def random(self) -> float:
        self.fractions.reverse()
        return self.fractions[1]

    def integers(self, count: int) -> int:
        return 0


@pytest.mark.parametrize("mask", [block_mask, fixed_count_block_mask])
@pytest.mark.parametrize(
    ("grid", "aspect", "block"),
    [((14, 14), 0.5, (4, 4)), ((9, 9), 0.5, (3, 3)), ((6, 6), 0.5, (2, 2)), ((14, 14), 0.0, (2, 7)), ((14, 14), 1.0, (7, 2))],
)
def test_the_smallest_block_is_a_third_of_the_side_squared_and_aspects_go_from_03_to_333(mask, grid, aspect, block):
    """By hand on 14 × 14: area 16, so 4 × 4; at the aspect ratio .3 sqrt(4.8) × sqrt(53.3), rounded 2 × 7."""
    drawn = _first_block(mask, grid, Scripted(area=0.0, aspect=aspect))
    expected = np.zeros(grid, dtype=bool)
    expected[: block[0], : block[1]] = True
    np.testing.assert_array_equal(drawn, expected)


def _first_block(mask, grid: tuple[int, int], generator) -> np.ndarray:
    """The blocks alone: all are in one corner, so that no second one hides a new patch."""
    generator.permutation = lambda patches: patches[:0]
    return mask(grid, 0.6, generator)


def test_block_masks_are_those_of_an_independent_derivation():
    """Written from the description of the sampler, with the constants of 14 × 14 patches and the same randomness."""
    for seed in range(200):
        ours, theirs = np.random.default_rng(seed), np.random.default_rng(seed)
        ratio = 0.1 + 0.4 * seed / 200
        hidden, failures = set(), 0
        while len(hidden) < ratio * 196 and failures < 10:
            left = ratio * 196 - len(hidden)
            area = 16 + (left - 16) * theirs.random()
            aspect = 0.3 * (1 / 0.09) ** theirs.random()
            h, w = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            failures += 1
            if 1 <= h <= 13 and 1 <= w <= 13:
                top, side = theirs.integers(15 - h), theirs.integers(15 - w)
                block = {(top + i, side + j) for i in range(h) for j in range(w)}
                if 0 < len(block - hidden) <= left:
                    hidden, failures = hidden | block, 0
        expected = np.zeros((14, 14), dtype=bool)
        for patch in hidden:
            expected[patch] = True
        np.testing.assert_array_equal(block_mask((14, 14), ratio, ours), expected)
