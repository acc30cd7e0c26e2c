import pytest
import torch
from torch import nn

from hssl_hf.modules.projection_heads import BatchNorm, DINOProjectionHead, Prototypes, contrastive_mlp, prototype_logits
from tests.processes import run_pair


def test_projections_have_length_one():
    projected = DINOProjectionHead(8, 16, 4)(torch.randn(3, 5, 8))
    torch.testing.assert_close(projected.norm(dim=-1), torch.ones(3, 5))


def test_prototypes_are_cosines_and_ignore_their_own_length():
    prototypes, x = Prototypes(4, 6), torch.nn.functional.normalize(torch.randn(5, 4), dim=-1)
    before = prototype_logits(x, prototypes())
    assert before.abs().max() <= 1 + 1e-6
    with torch.no_grad():
        prototypes.weight_v.mul_(3)
    torch.testing.assert_close(prototype_logits(x, prototypes()), before)
    learned = Prototypes(4, 6, norm_last_layer=False)
    with torch.no_grad():
        learned.weight_v.copy_(prototypes.weight_v)
        learned.weight_g.fill_(2.0)
    torch.testing.assert_close(prototype_logits(x, learned()), 2 * before)


@pytest.mark.parametrize("bottleneck", [64, 256])
def test_prototypes_start_as_in_the_originals(bottleneck):
    """As torch's linear layer, whose weights DINO's weight norm takes over: uniform, rows of length 1 / sqrt(3)."""
    torch.manual_seed(0)
    weight = Prototypes(bottleneck, 4096).weight_v.detach()
    assert weight.norm(dim=1).mean().item() == pytest.approx(0.577, abs=3e-3)
    assert 0.999 * bottleneck**-0.5 < weight.abs().max() <= bottleneck**-0.5 and weight.mean().abs() < 1e-3
    assert torch.equal(Prototypes(bottleneck, 5, norm_last_layer=False).weight_g, torch.ones(5, 1))


def test_prototypes_are_linear_in_the_mean():
    """What makes the center exact from one vector."""
    prototypes, x = Prototypes(16, 32, norm_last_layer=False), torch.randn(40, 16)
    torch.testing.assert_close(
        prototype_logits(x.mean(0), prototypes()), prototype_logits(x, prototypes()).mean(0), atol=1e-6, rtol=1e-5
    )


def test_contrastive_heads_end_in_an_unscaled_norm():
    projector, predictor = contrastive_mlp(8, 16, 16, 4), contrastive_mlp(4, 16, 4)
    assert [m.affine for m in projector if isinstance(m, BatchNorm)] == [True, True, False]
    assert [m.affine for m in predictor if isinstance(m, BatchNorm)] == [True, False]
    assert not any(m.bias is not None for m in projector if isinstance(m, nn.Linear))
    out = predictor(projector(torch.randn(32, 8)))
    torch.testing.assert_close(out.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(0, unbiased=False), torch.ones(4), atol=1e-3, rtol=0)


def _normalize(rank: int, port: int, shape: tuple, results) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    x, norm = _input(shape)
    mine = x[rank::2].clone().requires_grad_()
    out = norm(mine)
    (out * weights(out.shape, rank)).sum().backward()
    results[rank] = [t.detach() for t in (out, mine.grad, norm.weight.grad, norm.running_mean, norm.running_var)]
    torch.distributed.destroy_process_group()


def _input(shape):
    generator = torch.Generator().manual_seed(0)
    norm = BatchNorm(shape[1])
    with torch.no_grad():
        norm.weight.copy_(torch.rand(shape[1], generator=generator) + 0.5)
    return torch.randn(shape, generator=generator) * 3 + 1, norm


def weights(shape, rank):
    return torch.rand(shape, generator=torch.Generator().manual_seed(rank))


@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 5, 6)])
def test_batch_norm_over_two_processes_equals_one(shape):
    """Outputs, gradients and running statistics; gradients of weights add up over the processes."""
    results = run_pair(_normalize, shape)
    first, second = results[0], results[1]
    x, norm = _input(shape)
    plain = nn.BatchNorm2d(3) if len(shape) == 4 else nn.BatchNorm1d(3)
    with torch.no_grad():
        plain.weight.copy_(norm.weight)
    full = x.clone().requires_grad_()
    out = plain(full)
    loss = sum((out[rank::2] * weights(out[rank::2].shape, rank)).sum() for rank in (0, 1))
    loss.backward()
    for index, expected in ((0, out), (1, full.grad)):
        for rank, result in enumerate((first, second)):
            torch.testing.assert_close(result[index], expected[rank::2].detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(first[2] + second[2], plain.weight.grad, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(first[3], plain.running_mean)
    torch.testing.assert_close(second[4], plain.running_var)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"expected \(N, C\) or \(N, C, h, w\)"):
        BatchNorm(3)(torch.zeros(2, 3, 4))
