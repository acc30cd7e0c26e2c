"""Full tensors of a run; between processes and engines, `make equivalence` resumes one engine's checkpoint under the next."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hssl_hf.engine.full_state import load_optimizer_state, load_weights, optimizer_state, random_states, restore_random_states


@pytest.fixture
def gloo(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def engine_of(model, *, sharded: bool = False):
    if sharded:
        fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    accelerator = SimpleNamespace(is_main_process=True)
    wrapped = SimpleNamespace(optimizer=optimizer)
    return SimpleNamespace(method=model, optimizer=wrapped, accelerator=accelerator, is_deepspeed=False, is_sharded=sharded)


def make_model(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))


def step(engine, frozen: bool = False) -> None:
    engine.method(torch.arange(12.0).view(4, 3)).square().sum().backward()
    if frozen:
        engine.method[2].weight.grad = None
    engine.optimizer.optimizer.step()
    engine.optimizer.optimizer.zero_grad()


def full(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def weights(engine) -> dict[str, torch.Tensor]:
    return {name: full(value) for name, value in engine.method.state_dict().items()}


@pytest.mark.parametrize("sharded", [(False, True), (True, False), (True, True), (False, False)])
def test_another_engine_continues(gloo, sharded):
    """Also with a parameter that was frozen so far, of which the optimizer knows nothing."""
    first, second = (engine_of(make_model(seed), sharded=shards) for seed, shards in enumerate(sharded))
    for _ in range(3):
        step(first, frozen=True)
    step(second)
    state = optimizer_state(first)
    assert set(state) == {f"{key}/{name}" for key in ("step", "exp_avg", "exp_avg_sq") for name, _ in
                          first.method.named_parameters() if name != "2.weight"}  # fmt: skip
    assert state["exp_avg/0.weight"].shape == (4, 3) and state["step/0.bias"] == 3
    load_weights(second, weights(first))
    load_optimizer_state(second, {name: value.clone() for name, value in state.items()})
    assert isinstance(second.method[0].weight, DTensor) == sharded[1]
    for _ in range(2):
        step(first)
        step(second)
    for name, value in weights(first).items():
        torch.testing.assert_close(weights(second)[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_weights_of_another_model_are_refused(change):
    engine = engine_of(make_model(0))
    given = weights(engine)
    if change == "missing":
        del given["0.bias"]
    else:
        given["0.bias" if change == "shape" else "3.bias"] = torch.zeros(7)
    with pytest.raises(RuntimeError, match=r"3\.bias|0\.bias"):
        load_weights(engine, given)


def test_random_numbers_continue():
    device = torch.device("cpu")
    states = random_states(device)
    expected = torch.rand(3)
    torch.manual_seed(7)
    restore_random_states(states, device)
    assert torch.equal(torch.rand(3), expected)
