"""The teacher: an exponential moving average of the student, parameter by parameter."""

import torch
from torch import nn


def trainable_pairs(student: nn.Module, teacher: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Pair every teacher parameter with the student's of the same name.

    Parameters that only the student has (mask token, prediction heads) take no part.

    Raises:
        ValueError: if the teacher has a parameter that the student lacks.
    """
    ours = dict(student.named_parameters())
    unknown = [name for name, _ in teacher.named_parameters() if name not in ours]
    if unknown:
        raise ValueError(f"the teacher has parameters that the student lacks: {unknown}")
    return [(ours[name], parameter) for name, parameter in teacher.named_parameters()]


@torch.no_grad()
def copy_to_teacher(student: nn.Module, teacher: nn.Module) -> None:
    """Give every teacher parameter the student's value, whatever it held before."""
    for source, target in trainable_pairs(student, teacher):
        target.copy_(source)


@torch.no_grad()
def update_teacher(student: nn.Module, teacher: nn.Module, momentum: float) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, in the teacher's precision.

    Buffers are left alone: a batch-normalized teacher normalizes with the statistics of its own batches.

    Args:
        momentum: in [0, 1]; 1 leaves the teacher unchanged.
    Source: DINO, arXiv 2104.14294, section 3.1.
    """
    sources, targets = zip(*trainable_pairs(student, teacher), strict=True)
    torch._foreach_lerp_(list(targets), [s.to(t.dtype) for s, t in zip(sources, targets, strict=True)], 1 - momentum)
