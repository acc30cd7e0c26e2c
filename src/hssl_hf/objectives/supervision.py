"""What all objectives share: the arrows of supervision, the centre, and what an objective returns."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from hssl_hf.models.configuration_hssl import HSSLConfig


@dataclass
class ObjectiveOutput:
    """
    Args:
        loss: scalar to minimise.
        parts: its terms and what is worth watching, scalars by name.
        discrepancy: scalar, between the teacher's two branches; None without auxiliary head.
    """

    loss: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    discrepancy: Tensor | None = None


def teachers(arrows: Iterable[tuple[str, str]]) -> list[str]:
    return sorted({teacher for teacher, _ in arrows})


def learners(arrows: Iterable[tuple[str, str]]) -> list[str]:
    return sorted({learner for _, learner in arrows})


def projected_widths(widths: dict[str, int], config: "HSSLConfig") -> dict[str, int]:
    """Channels that the projection of every learning branch reads, or of the one that all share.

    The base comes first, so that its values do not depend on whether there is a head.

    Args:
        widths: channels of the branches.
    Raises:
        ValueError: if branches of different widths should share a projection.
    """
    if config.shared_projection:
        if len(set(widths.values())) > 1:
            raise ValueError(f"shared_projection needs branches of one width, got {widths}; set shared_projection to false")
        return {"shared": widths["base"]}
    found = learners([*config.cls_arrows, *config.patch_arrows])
    return {name: widths[name] for name in sorted(found, reverse=True)}


def combine(terms: dict[str, Tensor], reduction: str) -> Tensor:
    """Mean (as released) or sum (equations 1 and 2 of HSSL) of the terms of all arrows."""
    stacked = torch.stack(list(terms.values()))
    return stacked.mean() if reduction == "mean" else stacked.sum()


class Center(nn.Module):
    """Running mean of a teacher's outputs, over all processes.

    Batches are collected while gradients accumulate and take effect in `update`, once per optimizer step.

    Source: DINO, arXiv 2104.14294, equation 4.
    """

    def __init__(self, size: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(size))
        self._mean, self._batches = None, 0

    def collect(self, mean: Tensor) -> None:
        """Take note of the mean output (K,) of one batch."""
        mean = mean.detach().float()
        self._mean = mean if self._mean is None else self._mean + mean
        self._batches += 1

    @torch.no_grad()
    def update(self) -> None:
        if self._mean is None:
            return
        mean = self._mean / self._batches
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        self.value.lerp_(mean, 1 - self.momentum)
        self._mean, self._batches = None, 0
