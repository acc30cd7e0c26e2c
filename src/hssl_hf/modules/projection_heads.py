"""Projection and prediction heads between a representation and its loss."""

from functools import partial
from itertools import chain, pairwise

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes, whose gradient is the sum of theirs.

    PyTorch's own collectives have gradients in newer releases only; in older ones they are silently cut off.
    """

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return SumOverProcesses.apply(gradient)


class BatchNorm(nn.BatchNorm1d):
    """Batch norm over all leading positions of (N, C) or (N, C, h, w), with statistics over all processes.

    Unlike `torch.nn.SyncBatchNorm` it runs on every device. In training a teacher normalizes with its own batch too.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim not in (2, 4):
            raise ValueError(f"expected (N, C) or (N, C, h, w), got {tuple(x.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        axes = [0, 2, 3][: x.ndim - 1]
        count = x.numel() // x.shape[1]
        values = x.float()
        sums = torch.cat([values.sum(axes), values.square().sum(axes), values.new_tensor([count])])
        sums = SumOverProcesses.apply(sums)
        total = sums[-1].detach()
        mean = sums[: self.num_features] / total
        variance = sums[self.num_features : -1] / total - mean.square()
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * total / (total - 1), self.momentum)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        normed = (values - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            normed = normed * self.weight.view(shape) + self.bias.view(shape)
        return normed.to(x.dtype)


class TokenBatchNorm(nn.Module):
    """Batch norm of tokens (B, n, C): statistics per channel over batch and tokens of all processes."""

    def __init__(self, width: int, device=None, dtype=None):
        super().__init__()
        self.bn = BatchNorm(width, device=device, dtype=dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.bn(tokens.flatten(0, -2)).view_as(tokens)


def init_linear_layers(module: nn.Module, init: str) -> None:
    """Initialize the matrices of all linear layers in a module as they are stored; biases 0.

    Args:
        init: "trunc_normal", a truncated normal distribution of standard deviation .02, or "xavier", Xavier's uniform one, for
            queries, keys and values together as in the released SiameseIM and MAE code.
    """
    initialize = {"trunc_normal": partial(nn.init.trunc_normal_, std=0.02), "xavier": nn.init.xavier_uniform_}[init]
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            initialize(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class DINOProjectionHead(nn.Sequential):
    """Three linear layers with GELU between, from C to the bottleneck, normalized to length 1.

    Source: DINO, arXiv 2104.14294, section 3.1; iBOT; HSSL.
    """

    def __init__(self, width: int, hidden: int, bottleneck: int):
        super().__init__(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        init_linear_layers(self, "trunc_normal")

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(super().forward(x).float(), dim=-1)


class Prototypes(nn.Module):
    """K prototypes of length 1, or of a learned length.

    Args:
        bottleneck: width of the projections.
        count: number of prototypes K.
        norm_last_layer: keep every length at 1; otherwise lengths are learned.
    Source: DINO, whose last layer starts as torch's linear layers do, uniformly within 1 / sqrt(bottleneck), with rows of
        length .577. Their length sets how fast their directions turn.
    """

    def __init__(self, bottleneck: int, count: int, norm_last_layer: bool = True):
        super().__init__()
        self.weight_v = nn.Parameter(torch.empty(count, bottleneck))
        nn.init.uniform_(self.weight_v, -(bottleneck**-0.5), bottleneck**-0.5)
        self.weight_g = None if norm_last_layer else nn.Parameter(torch.ones(count, 1))

    def forward(self) -> Tensor:
        """(K, bottleneck), to be computed once per step."""
        directions = F.normalize(self.weight_v, dim=-1)
        return directions if self.weight_g is None else directions * self.weight_g


def prototype_logits(projected: Tensor, prototypes: Tensor) -> Tensor:
    """(..., bottleneck) and (K, bottleneck) -> (..., K) fp32."""
    return F.linear(projected.to(prototypes.dtype), prototypes).float()


def contrastive_mlp(*widths: int) -> nn.Sequential:
    """Linear layers with batch norm and ReLU; the last one without ReLU, and its norm without scale and shift.

    Args:
        widths: channels of the input and of every layer; the projector has three layers, the predictor two.
    Source: MoCo v3, arXiv 2104.02057, section 3.
    """
    *inner, output = widths
    layers = [[nn.Linear(n, m, bias=False), BatchNorm(m), nn.ReLU(inplace=True)] for n, m in pairwise(inner)]
    return nn.Sequential(*chain(*layers), nn.Linear(inner[-1], output, bias=False), BatchNorm(output, affine=False))
