"""How differently two branches describe the same images; computed in every training step, without labels."""

import torch
import torch.nn.functional as F
from torch import Tensor


def discrepancy(base: Tensor, auxiliary: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over images of KL(softmax(base / T) || softmax(auxiliary / T)), in nats.

    Args:
        base: (n, d) teacher outputs of the base model, one row per image.
        auxiliary: (n, d) teacher outputs of the auxiliary head for the same images.
        temperature: T > 0. The paper names none; at the teacher's temperature, on centered outputs, the values are of the
            order that it reports (.056 to .11).
    Returns:
        a scalar, 0 if and only if both agree on every image.
    Raises:
        ValueError: if the shapes differ or are not (n, d).
    Source: HSSL, equations 5 and 8.
    """
    if base.shape != auxiliary.shape or base.ndim != 2:
        raise ValueError(f"expected two matrices of one shape (n, d), got {tuple(base.shape)} and {tuple(auxiliary.shape)}")
    base_log = F.log_softmax(base.float() / temperature, dim=-1)
    auxiliary_log = F.log_softmax(auxiliary.float() / temperature, dim=-1)
    return torch.sum(base_log.exp() * (base_log - auxiliary_log), dim=-1).mean()
