"""The pooling of PoolFormer with and without the shortcut that its subtraction is made for."""

import pytest
import torch

from hssl_hf.auxiliary import build_head
from hssl_hf.models.configuration_two_branch import TwoBranchConfig

WIDTH = 64


def block_of(**fields):
    torch.manual_seed(0)
    config = TwoBranchConfig(auxiliary="poolformer", auxiliary_depth=2, **fields)
    return build_head("poolformer", config, WIDTH, (6, 6), []).blocks[0].eval()


def pooled_by_hand(x: torch.Tensor) -> torch.Tensor:
    """Mean over the up to nine neighbors inside of the map."""
    out = torch.empty_like(x)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            out[:, i, j] = x[:, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].flatten(1, 2).mean(1)
    return out


@pytest.mark.parametrize(
    ("fields", "subtracts"),
    [
        ({}, 0),
        ({"auxiliary_pooling": "minus_input"}, 1),
        ({"auxiliary_first_shortcut": True}, 1),
        ({"auxiliary_first_shortcut": True, "auxiliary_pooling": "minus_input"}, 1),
    ],
)
def test_the_input_is_subtracted_where_the_shortcut_adds_it_back(fields, subtracts):
    block, x = block_of(**fields), torch.randn(2, 6, 6, WIDTH)
    normed = block.norm1(x)
    torch.testing.assert_close(block.mix(x), pooled_by_hand(normed) - subtracts * normed, atol=1e-5, rtol=1e-5)


def test_without_the_first_shortcut_the_head_has_no_component_against_the_base():
    """The input minus the pooled one is mostly the negated input, which is the base's own features with another sign."""
    x = torch.randn(8, 6, 6, WIDTH, generator=torch.Generator().manual_seed(0))
    cosine = {}
    for pooling in ("plain", "minus_input"):
        mixed = block_of(auxiliary_pooling=pooling).mix(x)
        cosine[pooling] = torch.cosine_similarity(mixed.flatten(1), x.flatten(1)).mean().item()
    assert cosine["plain"] > 0 and cosine["minus_input"] < -0.9


def test_later_blocks_keep_the_subtraction_with_their_shortcut():
    config = TwoBranchConfig(auxiliary="poolformer", auxiliary_depth=3)
    blocks = build_head("poolformer", config, WIDTH, (6, 6), []).blocks
    assert [block.minus_input for block in blocks] == [False, True, True]
