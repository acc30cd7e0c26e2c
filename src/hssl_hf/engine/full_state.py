"""Weights and optimizer state as full tensors by their names, the same under every engine; random states of a process."""

from collections.abc import Mapping

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from hssl_hf.engine.distributed import Engine


def full_weights(engine: Engine) -> dict[str, Tensor]:
    """The `state_dict` of the model, with full tensors; to be called by all processes.

    Where the model is sharded, it is empty on other processes than the main process.
    """
    if engine.is_sharded:
        return engine.accelerator.get_state_dict(engine.model)
    return engine.method.state_dict()


def unsharded_model(engine: Engine) -> nn.Module:
    """The model with full weights: itself, or where it is sharded a copy. To be called by all processes."""
    if not engine.is_sharded:
        return engine.method
    weights, device = full_weights(engine), engine.accelerator.device
    copy = type(engine.method)(engine.method.config)
    if engine.accelerator.is_main_process:
        copy.load_state_dict(weights)
    for tensor in copy.state_dict().values():
        tensor.copy_(broadcast(tensor.to(device)))
    return copy.train()


def load_weights(engine: Engine, weights: Mapping[str, Tensor]) -> None:
    """Give the model these weights, as its `state_dict` names them; to be called by all processes.

    Raises:
        RuntimeError: for names and shapes that are not the model's.
    """
    like = engine.method.state_dict()
    weights = {name: _distributed_like(like[name], value) if name in like else value for name, value in weights.items()}
    engine.method.load_state_dict(weights)
    if engine.is_deepspeed:
        engine.optimizer.optimizer.refresh_fp32_params()


def optimizer_state(engine: Engine) -> dict[str, Tensor]:
    """What the optimizer keeps of every parameter that it has updated, as "exp_avg/" and the name of the parameter.

    To be called by all processes. On other processes than the main process it is empty.
    """
    state = {}
    if partitions := _deepspeed_partitions(engine):
        _link(engine, partitions)
    for name, parameter in engine.method.named_parameters():
        values = _deepspeed_state(engine, parameter, partitions) if partitions else _state_of(engine, parameter)
        if engine.accelerator.is_main_process:
            state |= {f"{key}/{name}": value.detach().cpu().contiguous() for key, value in values.items()}
    return state


def load_optimizer_state(engine: Engine, state: Mapping[str, Tensor]) -> None:
    """Give the optimizer what `optimizer_state` has returned, under this engine or another.

    Raises:
        ValueError: for parameters that the model lacks or has in another shape.
    """
    parameters = dict(engine.method.named_parameters())
    values: dict[nn.Parameter, dict[str, Tensor]] = {}
    for entry, value in state.items():
        key, _, name = entry.partition("/")
        if name not in parameters or (value.dim() and value.shape != parameters[name].shape):
            raise ValueError(f"the optimizer's state has {entry} of {tuple(value.shape)}, which is no parameter of the model")
        values.setdefault(parameters[name], {})[key] = value
    if partitions := _deepspeed_partitions(engine):
        _load_deepspeed_state(engine, values, partitions)
        return
    optimizer = engine.optimizer.optimizer
    optimizer.state.clear()
    for parameter, of_parameter in values.items():
        optimizer.state[parameter] = {key: _distributed_like(parameter, value) for key, value in of_parameter.items()}


def random_states(device: torch.device) -> dict[str, Tensor]:
    """States of the random generators of this process, on the CPU and on its device."""
    states = {"cpu": torch.get_rng_state()}
    return states if device.type == "cpu" else {**states, device.type: torch.get_device_module(device).get_rng_state()}


def restore_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Set the random generators to these states; a device of another type keeps its own."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu" and device.type in states:
        torch.get_device_module(device).set_rng_state(states[device.type])


def _state_of(engine: Engine, parameter: nn.Parameter) -> dict[str, Tensor]:
    values = engine.optimizer.optimizer.state.get(parameter, {})
    return {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in values.items()}


def _distributed_like(like: Tensor, value: Tensor) -> Tensor:
    """A value on the device of another tensor, and sharded as that one if both have the same shape."""
    value = value.to(like.device)
    if isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(value, like.device_mesh, like.placements)
    return value


def _deepspeed_partitions(engine: Engine) -> dict[nn.Parameter, Tensor]:
    """The partition of this process of the group of every parameter, which DeepSpeed optimizes instead; else nothing."""
    if not engine.is_deepspeed:
        return {}
    zero = engine.optimizer.optimizer
    groups = zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True)
    return {parameter: partition for group, partition in groups for parameter in group}


def _link(engine: Engine, partitions: dict[nn.Parameter, Tensor]) -> None:
    """Let parameters find their slice of the partition's state, which DeepSpeed does for the first group alone."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    for parameter, partition in partitions.items():
        lazy_init_hp_params_optimizer_state([parameter], partition, engine.optimizer.optimizer.optimizer.state)


def _deepspeed_state(engine: Engine, parameter: nn.Parameter, partitions: dict[nn.Parameter, Tensor]) -> dict[str, Tensor]:
    from deepspeed.utils import safe_get_full_optimizer_state

    if parameter not in partitions:
        return {}
    values = engine.optimizer.optimizer.optimizer.state.get(partitions[parameter], {})
    scalar = {key: value.clone() for key, value in values.items() if value.dim() == 0}  # a group has one of it
    return scalar | {key: safe_get_full_optimizer_state(parameter, key) for key in values if key not in scalar}


def _load_deepspeed_state(
    engine: Engine, values: dict[nn.Parameter, dict[str, Tensor]], partitions: dict[nn.Parameter, Tensor]
) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state

    state = engine.optimizer.optimizer.optimizer.state
    dims = {key: value.dim() for of_parameter in values.values() for key, value in of_parameter.items()}
    for partition in engine.optimizer.optimizer.single_partition_of_fp32_groups:
        state[partition] = {key: torch.zeros_like(partition) if dim else partition.new_zeros(()) for key, dim in dims.items()}
    _link(engine, partitions)
    for parameter, of_parameter in values.items():
        for key, value in of_parameter.items():
            if value.dim():
                safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)
            else:
                state[partitions[parameter]][key].copy_(value)
