"""The optimizer: parameter groups, AdamW, and what happens to gradients in front of it."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def parameter_groups(module: nn.Module) -> list[dict]:
    """Two groups: parameters with weight decay (first), and biases and other one-dimensional ones without.

    Position tables, class and mask tokens and prototypes are matrices and decay, as in DINO and iBOT. Every trainable
    parameter is in exactly one group.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    decays = {name for name, p in trainable.items() if p.ndim > 1 and not name.endswith(".bias")}
    return [
        {"params": [p for name, p in trainable.items() if name in decays], "decays": True},
        {"params": [p for name, p in trainable.items() if name not in decays], "decays": False, "weight_decay": 0.0},
    ]


def build_optimizer(module: nn.Module, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW over a module's trainable parameters; learning rate and weight decay are set at every step."""
    return torch.optim.AdamW(parameter_groups(module), lr=0.0, betas=betas, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, learning_rate: float, weight_decay: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        if group["decays"]:
            group["weight_decay"] = weight_decay


@torch.no_grad()
def clip_each_gradient(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale down the gradient of every parameter tensor whose own norm exceeds `largest`, without waiting for the device.

    Returns:
        (n,) norms before clipping.
    Source: DINO and iBOT code. Differs: their papers do not say that the norm is per tensor, not global.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch._foreach_norm(gradients)
    torch._foreach_mul_(gradients, [(largest / (norm + 1e-6)).clamp(max=1.0) for norm in norms])
    return torch.stack(norms)


@torch.no_grad()
def clip_gradient(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale down all gradients together if their common norm exceeds `largest`, without waiting for the device.

    Returns:
        (1,) norm before clipping.
    Source: SiameseIM code.
    """
    return nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], largest, foreach=True).view(1)


CLIPS = {"each": clip_each_gradient, "all": clip_gradient}


def drop_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Make the optimizer pass these parameters over entirely, their weight decay included."""
    for parameter in parameters:
        parameter.grad = None
