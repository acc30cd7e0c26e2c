"""All six families of auxiliary heads, at depths 1 and 3, on token grids and feature maps of several sizes."""

import pytest
import torch
from timm.layers import DropPath

from hssl_hf.auxiliary import BLOCKS, AuxiliaryHead
from hssl_hf.auxiliary.swin import SwinBlock
from hssl_hf.models.configuration_two_branch import TwoBranchConfig

WIDTH = 64


def head(family: str, depth: int = 2, grid=(14, 14), rates=(), **fields) -> AuxiliaryHead:
    """A head of a family; `fields` are those of the configuration, without their prefix `auxiliary_`."""
    torch.manual_seed(0)
    config = TwoBranchConfig(auxiliary_depth=depth, **{f"auxiliary_{name}": value for name, value in fields.items()})
    return AuxiliaryHead(BLOCKS[family], config, WIDTH, grid, rates)


@pytest.mark.parametrize("family", BLOCKS)
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("grid", [(14, 14), (7, 7), (6, 6), (8, 12), (3, 3)])
def test_keeps_the_grid_and_moves_every_parameter(family, depth, grid):
    network = head(family, depth)
    tokens = network(torch.randn(2, *grid, WIDTH))
    assert tokens.cls.shape == (2, WIDTH) and tokens.patches.shape == (2, *grid, WIDTH)
    (tokens.cls.square().sum() + (tokens.patches**3).sum()).backward()
    missing = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing


@pytest.mark.parametrize("family", BLOCKS)
def test_without_its_first_shortcut_the_head_cannot_copy_the_base(family):
    """With all weights of the token mixer at zero nothing of the features passes, unless the shortcut is kept."""
    features = torch.randn(2, 14, 14, WIDTH)
    for kept in (False, True):
        network = head(family, depth=1, first_shortcut=kept).eval()
        with torch.no_grad():
            for parameter in network.blocks.parameters():
                parameter.zero_()
        if family == "poolformer":  # its mixer has no weights: silence the norm in front of it, above
            assert not list(network.blocks[0].mixer.parameters())
        differs = (network(features).patches - network(features.flip(0)).patches).abs().max() > 1e-3
        assert bool(differs) == kept


@pytest.mark.parametrize("family", BLOCKS)
def test_only_the_first_shortcut_is_removed(family):
    assert [block.shortcut for block in head(family, depth=3).blocks] == [False, True, True]
    assert [block.shortcut for block in head(family, depth=2, first_shortcut=True).blocks] == [True, True]


def test_two_residuals_without_the_first_are_f1_plus_f2_of_f1():
    """HSSL, section 3: F1(z) + F2(F1(z)), here for the ViT block with its mixer and its MLP."""
    network, z = head("vit", depth=1).eval(), torch.randn(2, 5, 5, WIDTH)
    block = network.blocks[0]
    mixed = block.attention(block.norm1(z).flatten(1, 2)).view_as(z)
    torch.testing.assert_close(block(z), mixed + block.mlp(block.norm2(mixed)))


def test_image_level_is_the_normed_mean_of_the_map():
    network, features = head("convnext", depth=2).eval(), torch.randn(2, 6, 6, WIDTH)
    hidden = features
    for block in network.blocks:
        hidden = block(hidden)
    torch.testing.assert_close(network(features).cls, network.norm(hidden.mean((1, 2))))
    torch.testing.assert_close(network(features).patches, network.norm(hidden))


def test_drop_path_rates_reach_the_blocks_and_spare_the_missing_shortcut():
    network = head("convnext", depth=3, rates=[0.9, 0.5, 0.25])
    assert [m.drop_prob for m in network.modules() if isinstance(m, DropPath)] == [0.9, 0.5, 0.25]
    block, x = network.blocks[0].train(), torch.randn(4, 5, 5, WIDTH)
    assert torch.equal(block(x), block(x)), "a block without shortcut must not drop its only path"


@pytest.mark.parametrize(("init", "spread"), [("trunc_normal", 0.02), ("xavier", (2 / (5 * WIDTH)) ** 0.5)])
def test_initial_spread(init, spread):
    network = head("convnext", depth=1, init=init)
    assert network.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(spread, rel=0.05)
    assert not network.blocks[0].mlp.fc1.bias.any()


def test_hidden_size():
    network = head("vit", depth=1, hidden_size=32)
    assert network.blocks[0].norm1.weight.shape == (32,)
    assert network(torch.randn(2, 4, 4, WIDTH)).cls.shape == (2, WIDTH)


def test_swin_attends_within_its_window_alone():
    block = SwinBlock(WIDTH, grid=(14, 14), layer=0, shortcut=False, drop_path=0.0).eval()
    x = torch.randn(1, 14, 14, WIDTH)
    changed = x.clone()
    changed[0, 0, 0] += 3
    difference = (block(changed) - block(x)).abs().amax(-1)[0]
    assert (difference[:7, :7] > 0).all() and difference[7:].max() == 0 and difference[:, 7:].max() == 0


def test_shifted_swin_attends_across_windows_but_not_around_the_border():
    block = SwinBlock(WIDTH, grid=(14, 14), layer=1, shortcut=False, drop_path=0.0).eval()
    x = torch.randn(1, 14, 14, WIDTH)
    changed = x.clone()
    changed[0, 0, 0] += 3
    difference = (block(changed) - block(x)).abs().amax(-1)[0]
    assert (difference[:3, :3] > 0).all(), "the corner's own region"
    assert difference[3:].max() == 0 and difference[:, 3:].max() == 0, "nothing else, above all not the opposite side"
    changed = x.clone()
    changed[0, 6, 6] += 3
    difference = (block(changed) - block(x)).abs().amax(-1)[0]
    assert (difference[3:10, 3:10] > 0).all(), "the shifted window crosses the unshifted border"


@pytest.mark.parametrize("grid", [(14, 14), (8, 12), (3, 3)])
def test_swin_is_the_same_with_and_without_the_fused_kernel(grid):
    block = SwinBlock(WIDTH, grid=(14, 14), layer=1, shortcut=False, drop_path=0.0).eval()
    x, outputs = torch.randn(2, *grid, WIDTH), []
    for block.fused in (True, False):
        outputs.append(block(x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(block(x).float(), outputs[0], atol=0.05, rtol=0.05)
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-4)


def test_swin_padding_is_never_attended_to():
    """A grid that windows do not divide: equal to attending within the cut windows."""
    block = SwinBlock(WIDTH, grid=(14, 14), layer=0, shortcut=False, drop_path=0.0).eval()
    x = torch.randn(1, 8, 12, WIDTH)
    full, corner = block(x), block(x[:, 7:, 7:].contiguous())
    torch.testing.assert_close(full[:, 7:, 7:], corner, atol=1e-5, rtol=1e-4)


def test_resmlp_mixes_other_grids_through_its_own():
    network = head("resmlp", depth=1)
    with torch.no_grad():
        network.blocks[0].mixer.weight.copy_(torch.full((196, 196), 1 / 196))
        network.blocks[0].mixer.bias.zero_()
    x = torch.ones(1, 6, 6, WIDTH)
    block = network.blocks[0]
    mixed = block.norm1(x)
    torch.testing.assert_close(block(x), mixed + block.mlp(block.norm2(mixed)), atol=1e-5, rtol=1e-4)
