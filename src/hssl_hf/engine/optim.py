"""The optimizer: parameter groups, AdamW, and clipping.

Gradients are those of full tensors, or sharded ones (`DTensor`); clipping does not wait for the device.
"""

from collections.abc import Collection, Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def parameter_groups(module: nn.Module, freezable: Mapping[str, Iterable[nn.Parameter]] | None = None) -> list[dict]:
    """Groups of parameters with weight decay and, for biases and other one-dimensional ones, without; `freezable` ones apart.

    Position tables, class and mask tokens and prototypes are matrices and decay, as in DINO and iBOT. Every trainable
    parameter is in exactly one group.

    Args:
        freezable: parameters that are frozen for some epochs (`set_rates`), by name of their groups.
    """
    group_name = {id(p): name for name, parameters in (freezable or {}).items() for p in parameters}
    groups = {}
    for name, p in module.named_parameters():
        if p.requires_grad:
            key = group_name.get(id(p), "rest"), p.ndim > 1 and not name.endswith(".bias")
            group = groups.setdefault(key, {"params": [], "name": key[0], "decays": key[1]})
            group["params"].append(p)
    return [{**group, **({} if group["decays"] else {"weight_decay": 0.0})} for group in groups.values()]


def build_optimizer(
    module: nn.Module, betas: tuple[float, float], freezable: Mapping[str, Iterable[nn.Parameter]] | None = None
) -> torch.optim.AdamW:
    """AdamW over a module's trainable parameters; learning rate and weight decay are set at every step."""
    return torch.optim.AdamW(parameter_groups(module, freezable), lr=0.0, betas=betas, fused=True)


def set_rates(
    optimizer: torch.optim.Optimizer, learning_rate: float, weight_decay: float, frozen: Collection[str] = ()
) -> None:
    """Learning rate and weight decay of a step, in which the groups named `frozen` are not updated."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if group["name"] in frozen else learning_rate
        if group["decays"]:
            group["weight_decay"] = 0.0 if group["name"] in frozen else weight_decay


def clip_per_parameter(gradients: list[Tensor], largest: float) -> Tensor:
    """Scale down every gradient whose own norm exceeds `largest`; returns the (n,) norms before clipping.

    Source: DINO and iBOT code. Differs: in their papers the norm may be read as global; it is per tensor.
    """
    norms = gradient_norms(gradients)
    torch._foreach_mul_(local_tensors(gradients), list((largest / (norms + 1e-6)).clamp(max=1.0).unbind()))
    return norms


def clip_global_norm(gradients: list[Tensor], largest: float) -> Tensor:
    """Scale down all gradients together if their common norm exceeds `largest`; returns the (1,) norm before clipping.

    Source: SiameseIM code.
    """
    norm = gradient_norms(gradients).norm()
    torch._foreach_mul_(local_tensors(gradients), (largest / (norm + 1e-6)).clamp(max=1.0))
    return norm.view(1)


CLIPS = {"per_parameter": clip_per_parameter, "global": clip_global_norm}


def local_tensors(gradients: list[Tensor]) -> list[Tensor]:
    """The shards of this process; full gradients as they are."""
    return [g.to_local() if isinstance(g, DTensor) else g for g in gradients]


def gradient_norms(gradients: list[Tensor]) -> Tensor:
    """(n,) norms, of sharded gradients over all shards."""
    norms = torch.stack(torch._foreach_norm(local_tensors(gradients)))
    if any(isinstance(g, DTensor) for g in gradients):
        dist.all_reduce(norms.square_())
        norms.sqrt_()
    return norms


def drop_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Exclude these parameters from a step, their moments included."""
    for parameter in parameters:
        parameter.grad = None
