"""What the objectives of HSSL share: base class, inputs and outputs, who supervises whom, and the center."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hssl_hf.modules.tokens import Branches

if TYPE_CHECKING:
    from hssl_hf.models.configuration_hssl import HSSLConfig


@dataclass(frozen=True)
class ObjectiveInputs:
    """What an objective compares; V global and L local views of B images.

    Args:
        student, teacher: tokens (V, B, ...) of the global views; the teacher's without gradient.
        student_heads, teacher_heads: of `make_heads`.
        local: the student's tokens (L, B, ...) of the local views, or None.
        bool_masked_pos: (V, B, h, w) bool, True = masked in the student's input.
        mask_indices: (M,) positions of the masked patches in the flattened mask, or None to compute them.
        teacher_temperature: tau_t (dino, ibot).
    """

    student: Branches
    teacher: Branches
    student_heads: nn.Module
    teacher_heads: nn.Module
    local: Branches | None = None
    bool_masked_pos: Tensor | None = None
    mask_indices: Tensor | None = None
    teacher_temperature: float | None = None

    def projected_teacher_cls(self) -> dict[str, Tensor]:
        """(V, B, C) class tokens of the teacher's branches that have a projection."""
        branches = self.teacher._asdict().items()
        return {name: tokens.cls for name, tokens in branches if tokens is not None and self.teacher_heads.has(name)}


@dataclass
class ObjectiveOutput:
    """
    Args:
        loss: scalar to minimize.
        losses: its terms, scalars by name.
        metrics: monitored scalars by name, which are not part of the loss.
        discrepancy: scalar, between the teacher's two branches; None without an auxiliary head.
    """

    loss: Tensor
    losses: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)
    discrepancy: Tensor | None = None


class Objective(nn.Module):
    """A loss between student and teacher, with projection heads of its own.

    num_views: global views it expects; None for any number.
    supports_local_views: whether it takes local views.
    in_batch_negatives: the images of a batch are each other's negatives, so that gradients cannot accumulate.
    heads_class: class of the heads; its arguments are the input channels of every projection by name, and the configuration.
    """

    num_views: int | None = None
    supports_local_views = True
    in_batch_negatives = False
    heads_class: type[nn.Module]

    def __init__(self, config: "HSSLConfig"):
        super().__init__()
        self.config, self.cls_arrows, self.patch_arrows = config, config.cls_arrows, config.patch_arrows

    def make_heads(self, widths: dict[str, int]) -> nn.Module:
        """Projection heads for branches of these widths.

        The base comes first, so that its initial values do not depend on whether there is a head.

        Raises:
            ValueError: if branches of different widths are to share a projection.
        """
        config = self.config
        if not config.shared_projection:
            return self.heads_class({name: widths[name] for name in sorted(config.learners, reverse=True)}, config)
        if len(set(widths.values())) > 1:
            raise ValueError(f"shared_projection needs branches of one width, got {widths}; set shared_projection to false")
        return self.heads_class({"shared": widths["base"]}, config)

    def remove_student_only_modules(self, heads: nn.Module) -> None:
        """Remove what only a student has from the teacher's copy of the heads: by default nothing."""

    def update(self) -> None:
        """Once per optimizer step: let what centers and queues have collected take effect."""
        for module in self.modules():
            if hasattr(module, "collect"):
                module.update()


def teachers(arrows: Iterable[tuple[str, str]]) -> list[str]:
    return sorted({teacher for teacher, _ in arrows})


def learners(arrows: Iterable[tuple[str, str]]) -> list[str]:
    return sorted({learner for _, learner in arrows})


def combine(losses: dict[str, Tensor], reduction: str) -> Tensor:
    """Mean (as released) or sum (equations 1 and 2 of HSSL) of the losses of all arrows."""
    stacked = torch.stack(list(losses.values()))
    return stacked.mean() if reduction == "mean" else stacked.sum()


def average_over_processes(values: Tensor) -> None:
    """Replace values in place by their mean over all processes."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
        values /= dist.get_world_size()


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
        """Add the mean output (K,) of one batch; nothing in an evaluation."""
        if not self.training:
            return
        mean = mean.detach().float()
        self._mean = mean if self._mean is None else self._mean + mean
        self._batches += 1

    @torch.no_grad()
    def update(self) -> None:
        if self._mean is None:
            return
        mean = self._mean / self._batches
        average_over_processes(mean)
        self.value.lerp_(mean.to(self.value.dtype), 1 - self.momentum)
        self._mean, self._batches = None, 0
