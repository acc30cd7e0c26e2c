import numpy as np
import pytest
import torch

from hssl_hf.positions import resample_positions


def test_own_grid_is_left_alone():
    table = torch.randn(4, 4, 3)
    assert resample_positions(table, (4, 4)) is table


def test_a_smooth_table_keeps_its_values():
    ramp = torch.linspace(0, 1, 14)[:, None, None].expand(14, 14, 2)
    small = resample_positions(ramp, (7, 9))
    assert small.shape == (7, 9, 2)
    torch.testing.assert_close(small[:, 0, 0], small[:, 8, 1])
    assert small[3, 4, 0] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(("size", "rms"), [(96, 0.24097), (256, 0.098110), (512, 0.049103)])
def test_distance_to_the_official_rule_is_the_known_one(golden, size, rms):
    """DINO and iBOT add 0.1 to the grid: relative rms difference on a random table, as measured between both codes."""
    arrays = golden("base_methods")
    table = torch.from_numpy(arrays["pos/in"])[0, 1:].unflatten(0, (14, 14))
    official = arrays[f"pos/official_{size}"][0, 1:]
    ours = resample_positions(table, (size // 16, size // 16)).flatten(0, 1).numpy()
    ratio = np.sqrt(((ours - official) ** 2).mean() / (official**2).mean())
    assert ratio == pytest.approx(rms, rel=0.2)
