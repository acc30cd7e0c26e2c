import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from hssl_hf.objectives import normalize, unigrad
from tests.processes import run_pair

CASES = [(weight, norm) for weight in ("0.02", "0.5") for norm in (0, 1)]


def one(prediction, target, weight: float, norm: bool):
    """Loss and gradient as the model computes them from raw outputs (B, n, D)."""
    raw = prediction.clone().requires_grad_()
    prediction = F.layer_norm(raw, raw.shape[-1:]) if norm else raw
    loss = unigrad(prediction.flatten(0, 1), normalize(target, "layer_norm").flatten(0, 1), weight).loss
    loss.backward()
    return loss.detach(), raw.grad


@pytest.mark.parametrize(("weight", "norm"), CASES)
def test_equals_the_official_loss(golden, weight, norm):
    data = {name: torch.from_numpy(value) for name, value in golden("siameseim").items() if name.startswith("loss/ws1")}
    result = one(data["loss/ws1/rank0/pred"], data["loss/ws1/rank0/target"], float(weight), norm)
    expected = (data[f"loss/ws1/rank0/{what}_lam{weight}_ln{norm}"] for what in ("loss", "grad"))
    for mine, official in zip(result, expected, strict=True):
        torch.testing.assert_close(mine, official, rtol=2e-7, atol=1e-9)


def _work(rank: int, port: int, data, results) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for weight, norm in CASES:
        mine = [torch.from_numpy(data[f"loss/ws2/rank{rank}/{name}"]) for name in ("pred", "target")]
        results[rank, weight, norm] = one(*mine, float(weight), norm)
    torch.distributed.destroy_process_group()


def test_equals_the_official_loss_of_two_processes(golden):
    """The covariance is that of both; loss and gradient are each process's own."""
    data = golden("siameseim")
    results = run_pair(_work, {n: v for n, v in data.items() if n.startswith("loss/ws2")})
    for rank in (0, 1):
        for weight, norm in CASES:
            loss, gradient = results[rank, weight, norm]
            name = f"loss/ws2/rank{rank}/{{}}_lam{weight}_ln{norm}"
            torch.testing.assert_close(loss, torch.from_numpy(data[name.format("loss")]), rtol=2e-7, atol=1e-9)
            torch.testing.assert_close(gradient, torch.from_numpy(data[name.format("grad")]), rtol=2e-7, atol=1e-9)


@given(st.integers(2, 40), st.integers(2, 24), st.floats(0, 2), st.integers(0, 99))
def test_is_the_mean_over_all_pairs_of_tokens(count, width, weight, seed):
    """lambda times the mean of (p_i . z_j)² over all i and j: the M × M form, which is never built."""
    generator = torch.Generator().manual_seed(seed)
    prediction, target = (torch.randn(count, width, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = (prediction - target).square().mean() + weight * (prediction @ target.T).square().mean() / width
    torch.testing.assert_close(unigrad(prediction, target, weight).loss, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [
        (torch.zeros(512, 32), torch.randn(512, 32, generator=torch.Generator().manual_seed(0)), 1.0),
        (torch.ones(512, 32), torch.ones(512, 32), 0.02 * 32),
        (torch.ones(512, 32) / (1 + 0.02 * 32), torch.ones(512, 32), 0.02 * 32 / (1 + 0.02 * 32)),
    ],
)
def test_known_values(prediction, target, expected):
    """Nothing predicted: 1. A collapsed target met: lambda * D; its optimum: lambda * D / (1 + lambda * D)."""
    target = target / target.norm(dim=1, keepdim=True) * 32**0.5
    assert unigrad(prediction, target, 0.02).loss.item() == pytest.approx(expected, rel=0.02)


def test_collapse_is_the_fraction_that_all_targets_have_in_common():
    generator = torch.Generator().manual_seed(0)
    spread = normalize(torch.randn(4000, 16, generator=generator), "layer_norm")
    same = normalize(torch.randn(1, 16, generator=generator), "layer_norm").expand(4000, -1)
    assert unigrad(spread, spread, 0.02).metrics["collapse"] < 0.01
    assert unigrad(same, same, 0.02).metrics["collapse"].item() == pytest.approx(1, rel=1e-4)


def test_layer_normalized_features_have_squared_length_d():
    features = normalize(5 + 3 * torch.randn(6, 48), "layer_norm")
    torch.testing.assert_close(features.square().sum(1), torch.full((6,), 48.0), rtol=1e-3, atol=0)
    assert features.mean(1).abs().max() < 1e-5


def test_moco_like_features_are_batch_normalized_before_their_length_is_one():
    """What all tokens have in common, and the scale of a channel, is gone; all have length 1, of predictions too."""
    features = torch.randn(4, 5, 48, generator=torch.Generator().manual_seed(0), requires_grad=True)
    offset, scale = 9 * torch.randn(48), 1 + 5 * torch.rand(48)
    flat = features.flatten(0, 1)
    standard = (flat - flat.mean(0)) / (flat.var(0, unbiased=False) + 1e-5).sqrt()
    expected = (standard / standard.norm(dim=1, keepdim=True)).view(4, 5, 48)
    torch.testing.assert_close(normalize(features, "batch_norm_l2"), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(normalize(offset + scale * features, "batch_norm_l2"), expected, rtol=1e-3, atol=1e-4)
    (gradient,) = torch.autograd.grad(normalize(features, "batch_norm_l2")[..., 0].sum(), features)
    assert gradient.abs().sum() > 0


def test_targets_get_no_gradient():
    prediction, target = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    unigrad(prediction, target, 0.5).loss.backward()
    assert prediction.grad is not None and target.grad is None


class AllBytes(TorchDispatchMode):
    """Bytes of every tensor that is made, temporary or not: an upper bound of the peak."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.total += tensor.numel() * tensor.element_size()
        return made


def test_memory_is_linear_in_the_batch():
    """8, 16, 32 and 64 images of 49 tokens: every further image costs the same, in forward and backward together."""
    bytes_of = []
    for images in (8, 16, 32, 64):
        prediction, target = torch.randn(images * 49, 64, requires_grad=True), torch.randn(images * 49, 64)
        with AllBytes() as memory:
            unigrad(prediction, target, 0.02).loss.backward()
        bytes_of.append(memory.total)
    per_image = [(b - a) / n for a, b, n in zip(bytes_of, bytes_of[1:], (8, 16, 32), strict=False)]
    assert per_image[1] == pytest.approx(per_image[0], rel=0.01) and per_image[2] == pytest.approx(per_image[0], rel=0.01)
    assert bytes_of[-1] < (64 * 49) ** 2 * 4, "less in all than one M × M matrix"
