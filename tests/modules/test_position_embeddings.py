import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hssl_hf.modules.position_embeddings import (
    interpolate_position_embedding,
    relative_coordinates,
    relative_geometry,
    relative_positions,
    sincos_position_embedding,
)


def test_own_grid_is_left_alone():
    table = torch.randn(4, 4, 3)
    assert interpolate_position_embedding(table, (4, 4)) is table


def test_a_smooth_table_keeps_its_values():
    ramp = torch.linspace(0, 1, 14)[:, None, None].expand(14, 14, 2)
    small = interpolate_position_embedding(ramp, (7, 9))
    assert small.shape == (7, 9, 2)
    torch.testing.assert_close(small[:, 0, 0], small[:, 8, 1])
    assert small[3, 4, 0] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(("size", "rms"), [(96, 0.24097), (256, 0.098110), (512, 0.049103)])
def test_distance_to_the_official_rule_is_the_known_one(golden, size, rms):
    """DINO and iBOT add 0.1 to the grid: relative rms difference on a random table, as measured between both codes."""
    arrays = golden("base_methods")
    table = torch.from_numpy(arrays["pos/in"])[0, 1:].unflatten(0, (14, 14))
    official = arrays[f"pos/official_{size}"][0, 1:]
    ours = interpolate_position_embedding(table, (size // 16, size // 16)).flatten(0, 1).numpy()
    ratio = np.sqrt(((ours - official) ** 2).mean() / (official**2).mean())
    assert ratio == pytest.approx(rms, rel=0.2)


def all_positions(geometry: torch.Tensor, side: int, width: int) -> torch.Tensor:
    """[rows | columns | scale] of all patches, (B, side * side, 2 * width)."""
    rows, columns, scale = relative_positions(geometry, (side, side), width)
    components = rows[:, :, None].expand(-1, -1, side, -1), columns[:, None].expand(-1, side, -1, -1)
    return torch.cat([*components, scale[:, None, None].expand(-1, side, side, -1)], dim=-1).flatten(1, 2)


def unflipped(frame: torch.Tensor, flipped: torch.Tensor, image_width: float) -> torch.Tensor:
    """Official (top, left, height, width) in the frame of the possibly flipped image -> our five numbers."""
    top, left, height, width = frame.unbind(-1)
    return torch.stack([top, torch.where(flipped > 0, image_width - left - width, left), height, width, flipped], -1)


def test_relative_positions_equal_the_official_ones(golden):
    data = golden("siameseim")
    crop_boxes = torch.from_numpy(data["pos/crops_i1j1h1w1_i2j2h2w2_flip"]).float()
    visible = unflipped(crop_boxes[:, :4], torch.zeros(8), 0)
    target = unflipped(crop_boxes[:, 4:8], crop_boxes[:, 8], float(data["pos/image_width"]))
    geometry = relative_geometry(visible, target)
    for width, side in ((16, 14), (32, 4)):
        expected = torch.from_numpy(data[f"pos/embed_dim{width}_grid{side}"])
        torch.testing.assert_close(all_positions(geometry, side, width), expected, atol=1e-5, rtol=0)
    expected = torch.from_numpy(data["pos/embed_dim768_grid14_tokens"])
    positions = all_positions(geometry, 14, 768)[:, torch.from_numpy(data["pos/token_idx"])]
    torch.testing.assert_close(positions, expected, atol=1e-5, rtol=0)


def test_fixed_positions_equal_the_official_ones(golden):
    data = golden("siameseim")
    torch.testing.assert_close(
        sincos_position_embedding((14, 14), 16).flatten(0, 1),
        torch.from_numpy(data["pos/fixed_dim16_grid14_cls"])[1:],
        atol=1e-6,
        rtol=0,
    )


def test_geometry_equals_the_official_crops(golden):
    """i1 j1 h1 w1 i2 j2 h2 w2 f1 f2 W -> di dj dh dw flip fj of 16 crop_boxes that the official transform drew."""
    rows = torch.from_numpy(golden("siameseim")["aug/seed0_15_i1j1h1w1_i2j2h2w2_f1_f2_W_di_dj_dh_dw_relflip_flipdj"]).float()
    visible = unflipped(rows[:, :4], rows[:, 8], 500.0)
    target = unflipped(rows[:, 4:8], rows[:, 9], 500.0)
    offset_y, offset_x, ratio_y, ratio_x = relative_geometry(visible, target).unbind(-1)
    di, dj, dh, dw, flip, fj = rows[:, 11:].unbind(-1)
    torch.testing.assert_close(offset_y, di, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(offset_x, torch.where(flip > 0, fj, dj), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ratio_y, dh)
    torch.testing.assert_close(ratio_x, torch.where(flip > 0, -dw, dw))


def test_a_crop_in_its_own_frame_has_the_fixed_positions():
    crop = torch.tensor([[10.0, 20.0, 50.0, 70.0, 1.0]])
    embedded = all_positions(relative_geometry(crop, crop), 5, 16)
    torch.testing.assert_close(embedded[0, :, :16], sincos_position_embedding((5, 5), 16).flatten(0, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(embedded[..., 16:], torch.tensor([0.0] * 4 + [1.0] * 4).repeat(2).expand(1, 25, 16))


CROPS = st.tuples(st.floats(0, 300), st.floats(0, 300), st.floats(8, 300), st.floats(8, 300), st.booleans())


@given(CROPS, CROPS, st.integers(1, 14), st.integers(1, 14))
def test_coordinates_are_the_positions_of_the_patches_in_the_image(visible, target, rows, columns):
    """Every patch center of one crop, located in the image and in the other crop, by hand."""
    y, x = relative_coordinates(relative_geometry(torch.tensor(visible), torch.tensor(target)), (rows, columns))

    def column_in_image(crop, fraction):
        return crop[1] + crop[3] * (1 - fraction if crop[4] else fraction)

    for v in range(columns):
        column = column_in_image(target, (v + 0.5) / columns)
        fraction = (column - visible[1]) / visible[3]
        expected = columns * (1 - fraction if visible[4] else fraction) - 0.5
        assert x[v].item() == pytest.approx(expected, abs=2e-3 + 1e-5 * abs(expected))
    for u in range(rows):
        row = target[0] + target[2] * (u + 0.5) / rows
        expected = rows * (row - visible[0]) / visible[2] - 0.5
        assert y[u].item() == pytest.approx(expected, abs=2e-3 + 1e-5 * abs(expected))


def test_fixed_positions_need_a_width_that_four_divides():
    with pytest.raises(ValueError, match="a width divisible by 4, got 10"):
        sincos_position_embedding((2, 2), 10)
