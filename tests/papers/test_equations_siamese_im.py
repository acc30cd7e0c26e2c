"""Equations 1 to 4 of SiameseIM, written out in plain numpy, against what the package computes."""

import numpy as np
import pytest
import torch

from hssl_hf.modules.decoder import Decoder
from hssl_hf.modules.position_embeddings import relative_coordinates, relative_geometry
from hssl_hf.objectives import unigrad

GRID, WIDTH = 4, 16
FIRST, SECOND = (10.0, 20.0, 80.0, 50.0), (35.0, 5.0, 40.0, 75.0)  # top i, left j, height h, width w


def geometry() -> torch.Tensor:
    boxes = [torch.tensor([[*box, 0.0]]) for box in (FIRST, SECOND)]
    return relative_geometry(*boxes)


def sinusoid(value: float, width: int) -> np.ndarray:
    angles = value / 10000 ** (np.arange(width // 2) / (width // 2))
    return np.concatenate([np.sin(angles), np.cos(angles)])


def embed(pair: tuple[float, float], width: int) -> np.ndarray:
    """PE of two numbers, each in one half of the channels."""
    return np.concatenate([sinusoid(value, width // 2) for value in pair])


def printed_positions() -> np.ndarray:
    """Equation 2: positions of the corners of the second view's patches, from u, v = 1, ..., N, in patches of the first."""
    (i1, j1, h1, w1), (i2, j2, h2, w2) = FIRST, SECOND
    steps = range(1, GRID + 1)
    rows = [h2 / h1 * (u - 1) + (i2 - i1) / h1 * GRID for u in steps]
    columns = [w2 / w1 * (v - 1) + (j2 - j1) / w1 * GRID for v in steps]
    return np.array([rows, columns])


def released_positions() -> np.ndarray:
    """The same of the patches' centers: half a patch further in the second view, half a patch back in the first."""
    offset = np.array([0.5 * (SECOND[2] / FIRST[2] - 1), 0.5 * (SECOND[3] / FIRST[3] - 1)])
    return printed_positions() + offset[:, None]


def test_equation_2_is_of_corners_where_the_released_code_and_this_one_take_centers():
    computed = np.concatenate([c.numpy() for c in relative_coordinates(geometry(), (GRID, GRID))])
    np.testing.assert_allclose(computed, released_positions(), atol=1e-5)
    assert np.abs(computed - printed_positions()).max() > 0.2
    same = torch.tensor([[*FIRST, 0.0]])
    own = np.concatenate([c.numpy() for c in relative_coordinates(relative_geometry(same, same), (GRID, GRID))])
    np.testing.assert_allclose(own, [range(GRID)] * 2, atol=1e-5, err_msg="of one view both are (u - 1, v - 1)")


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder((GRID, GRID), WIDTH, 2, 2, "layer", WIDTH, relative=True)
    torch.nn.init.normal_(decoder.mask_token)
    return decoder.eval()


def second_positions(decoder: Decoder) -> np.ndarray:
    """Equation 3: p_b = Linear(Concat(PE(position), PE(s))) with s = 10 log of the ratios of the sides."""
    layer = decoder.position_projection
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    scale = embed((10 * np.log(SECOND[2] / FIRST[2]), 10 * np.log(SECOND[3] / FIRST[3])), WIDTH)
    rows, columns = released_positions()
    inputs = [np.concatenate([embed((u, v), WIDTH), scale]) for u in rows for v in columns]
    return np.array(inputs) @ weight.T + bias


def test_equation_3_projects_position_and_scale_together(decoder):
    result = decoder.project_positions(geometry()).detach().numpy()[0]
    np.testing.assert_allclose(result, second_positions(decoder), atol=1e-5)
    own = np.array([embed((u, v), WIDTH) for u in range(GRID) for v in range(GRID)])
    np.testing.assert_allclose(decoder.positions.numpy(), own, atol=1e-6, err_msg="p_a is PE alone, without the linear layer")


def test_equation_1_is_what_the_decoder_reads_behind_the_class_token(decoder):
    """Concat(y_a + p_a, {m + p_b}); as in the released code the class token comes first, without a position."""
    visible = torch.tensor([[1, 6, 7, 12]])
    tokens = torch.randn(1, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    inputs = []
    handle = decoder.blocks[0].register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].detach().numpy()[0]))
    prediction = decoder(tokens, visible, None, geometry())
    handle.remove()
    y, positions = tokens.numpy()[0], decoder.positions.numpy()
    queries = decoder.mask_token.detach().numpy()[0] + second_positions(decoder)
    expected = np.concatenate([y[:1], y[1:] + positions[[1, 6, 7, 12]], queries])
    np.testing.assert_allclose(inputs[0], expected, atol=1e-5)
    assert prediction.shape == (1, GRID * GRID, WIDTH), "one prediction per patch of the second view"


def test_equation_4_has_the_sign_of_the_positive_term_reversed_and_sums_where_the_released_code_averages():
    """Printed: E[-|y - z|² + w sum of (u·y)²]. Released, and here: E[+|y - z|² + w mean of (u·y)²] / D."""
    draw, weight, tokens = np.random.default_rng(0), 0.02, 30
    y, z = draw.normal(size=(2, tokens, WIDTH))
    z = (z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True)

    def printed(weight: float) -> float:
        terms = [-((a - b) ** 2).sum() + weight * sum((u @ a) ** 2 for u in z) for a, b in zip(y, z, strict=True)]
        return np.mean(terms)

    positive = np.mean([((a - b) ** 2).sum() for a, b in zip(y, z, strict=True)])
    output = unigrad(torch.from_numpy(y).float(), torch.from_numpy(z).float(), weight)
    assert output.loss.item() * WIDTH == pytest.approx(printed(weight / tokens) + 2 * positive, rel=1e-5)
    assert output.losses["positive"].item() * WIDTH == pytest.approx(positive, rel=1e-5)
    assert output.losses["negative"].item() * WIDTH == pytest.approx(printed(weight / tokens) + positive, rel=1e-5)
