import copy

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.models.vision_transformer import Block
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from hssl_hf.auxiliary import BLOCKS
from hssl_hf.modules.residual_branch import CheckpointedBlock, checkpointed, residual_add, use_checkpointed_blocks


def pair(**kwargs):
    """The same transformer twice: as timm computes it, and with checkpointed blocks."""
    torch.manual_seed(0)
    plain = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=64, num_heads=2, **kwargs)
    saving = copy.deepcopy(plain)
    use_checkpointed_blocks(saving)
    return plain.blocks, saving.blocks


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("fused", [True, False])
def test_same_result_and_gradients_as_timm(precision, fused):
    before = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(fused)
    try:
        plain, saving = pair()
    finally:
        timm.layers.set_fused_attn(bool(before))
    assert all(type(block) is CheckpointedBlock for block in saving)
    x = torch.randn(3, 17, 64)
    gradients = []
    for blocks in (plain, saving):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            output = blocks(x)
        output.float().square().sum().backward()
        gradients.append([output.detach(), *(p.grad for p in blocks.parameters())])
    for name, ours, theirs in zip(["output", *dict(plain.named_parameters())], *gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), saving.state_dict().values(), strict=True))


def saved_bytes(function, module) -> int:
    """Bytes that a forward pass keeps for its backward pass, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(size for size, _ in kept.values())


def test_keeps_two_fifths_less_than_timm():
    plain, saving = pair()
    x = torch.randn(3, 17, 64, requires_grad=True)
    assert saved_bytes(lambda: saving(x), saving) < 0.65 * saved_bytes(lambda: plain(x), plain)


def test_a_linear_layer_at_the_end_is_not_recomputed():
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x):
            Counting.calls += 1
            y = super().forward(x)
            Counting.calls += 1  # not reached where the pass ends at what the layer keeps
            return y

    layer, norm = Counting(8, 8), nn.LayerNorm(8)
    checkpointed(lambda x: layer(norm(x)), torch.randn(2, 8, requires_grad=True)).sum().backward()
    assert Counting.calls == 3


@pytest.mark.parametrize("kwargs", [{"init_values": 1e-4}, {"norm_layer": "batchnorm1d"}, {"scale_mlp_norm": True}])
def test_blocks_with_further_layers_are_left_unchanged(kwargs):
    if "norm_layer" in kwargs:
        kwargs = {"norm_layer": lambda width, **_: nn.Identity()}
    _, blocks = pair(**kwargs)
    assert all(type(block) is Block for block in blocks)


def test_dropped_samples_are_not_computed_and_the_mean_stays():
    torch.manual_seed(1)
    drop_path, seen = DropPath(0.4).train(), []
    x = torch.zeros(20_000, 1)
    y = residual_add(x, lambda kept: seen.append(len(kept)) or kept + 1, drop_path)
    assert sorted(set(y.flatten().tolist())) == [0.0, pytest.approx(1 / 0.6)]
    assert (y > 0).sum() == seen[0] and y.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(residual_add(x, lambda kept: kept + 1, drop_path.eval()), x + 1)


def test_a_batch_of_which_nothing_is_kept():
    _, (block, _) = pair()
    block.drop_path1, block.drop_path2 = DropPath(1 - 1e-9), DropPath(1 - 1e-9)
    x = torch.randn(2, 17, 64, requires_grad=True)
    y = block.train()(x)
    y.sum().backward()
    assert torch.equal(y, x) and all(p.grad is not None and not p.grad.any() for p in block.parameters()), (
        "no process of several lacks a gradient"
    )


@pytest.mark.parametrize("family", sorted(BLOCKS))
@pytest.mark.parametrize("shortcut", [True, False])
def test_mean_of_a_block_equals_the_block_of_means(family, shortcut):
    torch.manual_seed(0)
    block = BLOCKS[family](64, grid=(4, 4), layer=1, shortcut=shortcut, drop_path=0.0)
    x = torch.randn(3, 4, 4, 64)
    torch.testing.assert_close(block(x, pool=(1, 2)), block(x).mean((1, 2)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", sorted(BLOCKS))
def test_drop_path_keeps_or_drops_complete_samples(family):
    torch.manual_seed(0)
    block = BLOCKS[family](64, grid=(4, 4), layer=1, shortcut=True, drop_path=0.5).train()
    x = torch.rand(64, 4, 4, 64)
    unchanged = (block(x) == x).flatten(1).all(1).float().mean().item()
    branches = 1 if family in ("convnext", "resnet") else 2
    assert unchanged == pytest.approx(0.5**branches, abs=0.2) and unchanged > 0
