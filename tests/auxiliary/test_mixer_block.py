"""Table 15: token mixer and MLP together, and either of them alone."""

import pytest
import torch

from hssl_hf.auxiliary import BLOCKS
from tests.auxiliary.test_head import WIDTH, head

SPLITTABLE = sorted(BLOCKS.keys() - {"resnet"})


@pytest.mark.parametrize("family", SPLITTABLE)
@pytest.mark.parametrize("sublayers", [("token_mixer",), ("mlp",)])
@pytest.mark.parametrize("kept", [False, True])
def test_either_sublayer_alone_learns_with_every_parameter(family, sublayers, kept):
    network = head(family, depth=2, sublayers=sublayers, first_shortcut=kept)
    tokens = network(torch.randn(2, 6, 6, WIDTH))
    (tokens.cls.square().sum() + (tokens.patches**3).sum()).backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@pytest.mark.parametrize("family", SPLITTABLE)
def test_an_mlp_alone_mixes_no_tokens_and_a_mixer_alone_does(family):
    """A changed patch changes its own output only, or those of others too."""
    for sublayers, mixes in ((("mlp",), False), (("token_mixer",), True)):
        block = head(family, depth=1, sublayers=sublayers, first_shortcut=True).blocks[0].eval()
        if family == "poolformer" and not mixes:
            continue  # its norm is over the full map
        x = torch.randn(1, 6, 6, WIDTH)
        changed = x.clone()
        changed[0, 0, 0] += 5 * torch.randn(WIDTH)
        assert bool((block(x) - block(changed)).abs()[0, 0, 1].max() > 1e-6) == mixes


@pytest.mark.parametrize("family", SPLITTABLE)
def test_an_mlp_alone_adds_its_input_only_with_the_shortcut(family):
    """Without the first shortcut an MLP alone is F(x), nothing added; with it x + F(x)."""
    for kept in (False, True):
        block = head(family, depth=1, sublayers=("mlp",), first_shortcut=kept).blocks[0].eval()
        x = torch.randn(2, 5, 5, WIDTH)
        norm = block.norm if family == "convnext" else block.norm2
        torch.testing.assert_close(block(x), block.mlp(norm(x)) + (x if kept else 0))


@pytest.mark.parametrize("family", SPLITTABLE)
@pytest.mark.parametrize("sublayers", [("token_mixer",), ("mlp",)])
def test_pooled_outputs_are_the_mean_of_all(family, sublayers):
    network = head(family, depth=2, sublayers=sublayers).eval()
    x = torch.randn(2, 6, 6, WIDTH)
    torch.testing.assert_close(network(x, patches=False).cls, network(x).cls, atol=1e-5, rtol=1e-5)


def test_a_bottleneck_has_no_sublayers():
    with pytest.raises(ValueError, match="no token mixer and MLP apart"):
        head("resnet", sublayers=("mlp",))


def test_the_norm_of_poolformer_is_a_group_norm_of_one_group():
    norm = BLOCKS["poolformer"].make_norm(WIDTH)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 4, WIDTH) * 3 + 1
    expected = torch.nn.functional.group_norm(x.permute(0, 3, 1, 2).contiguous(), 1, norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(norm(x), expected.permute(0, 2, 3, 1), atol=1e-5, rtol=1e-5)
