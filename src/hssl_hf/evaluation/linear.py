"""Linear classifiers on frozen features: one per learning rate, all trained on the same batches."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from timm.optim import Lars
from torch import Tensor, nn

from hssl_hf.data.augmentation import Scale
from hssl_hf.fields import BatchSize, Epochs, FieldError, Length, Range, Section, Seed

BASE_BATCH_SIZE = 256  # images to which learning rates refer
Rate = Annotated[float, Range(above=0, most=10_000)]


@dataclass(frozen=True)
class LinearConfig(Section):
    """How the classifiers are trained. The defaults read the features of the center crops, which are computed once.

    Args:
        augment: compute the features of a random crop, perhaps flipped, of every image in every epoch.
        crop_scale, clip_crops, interpolation: of these crops, as of the global crops of a pre-training.
        learning_rates: peak learning rates per 256 images, all tried at once, each with a classifier.
        optimizer: sgd or lars (trust coefficient .001, not for biases), with momentum .9, without weight decay.
        normalize: features before the classifier: standardize, by the statistics of all training images; batch_norm, without
            scale and shift, by those of the batch and, to classify, their running mean; or none.
        epochs, warmup_epochs: after a linear rise, the learning rate falls by half a cosine to 0.
        rate_changes: with every step, or with every epoch.
        batch_size: images per step, of all processes.
        validation_fraction: part of the training split that chooses among the learning rates and trains nothing; 0 only with
            one learning rate.
        seed: of the classifiers, their order of images and the choice of that part.
    """

    augment: bool = False
    crop_scale: Scale = (0.08, 1.0)
    clip_crops: bool = False
    interpolation: Literal["bicubic", "bilinear"] = "bilinear"
    learning_rates: Annotated[tuple[Rate, ...], Length(1, 100)] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    optimizer: Literal["sgd", "lars"] = "sgd"
    normalize: Literal["standardize", "batch_norm", "none"] = "standardize"
    epochs: Annotated[int, Range(1, 1_000_000)] = 100
    warmup_epochs: Epochs = 0.0
    rate_changes: Literal["step", "epoch"] = "step"
    batch_size: BatchSize = 1024
    validation_fraction: Annotated[float, Range(0, below=1)] = 0.1
    seed: Seed = 0

    def __post_init__(self):
        super().__post_init__()
        if self.warmup_epochs >= self.epochs:
            raise FieldError(f"warmup_epochs: expected fewer than the {self.epochs} epochs, got {self.warmup_epochs}")
        if self.validation_fraction == 0 and len(self.learning_rates) > 1:
            raise FieldError(
                f"validation_fraction: expected a number above 0, since the choice among {len(self.learning_rates)} learning "
                "rates needs held-out images, got 0"
            )
        if self.augment and self.normalize == "standardize":
            raise FieldError("normalize: expected batch_norm or none for features that are computed in every epoch (augment)")
        if self.normalize == "batch_norm" and self.batch_size < 2:
            raise FieldError(f"batch_size: expected at least 2 for a batch norm, got {self.batch_size}")

    def rate_factor(self, epoch: float) -> float:
        """Learning rate at a time in epochs, as a fraction of the peak."""
        epoch = math.floor(epoch) if self.rate_changes == "epoch" else epoch
        if epoch < self.warmup_epochs:
            return epoch / self.warmup_epochs
        progress = (epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        return (1 + math.cos(math.pi * progress)) / 2


class LinearClassifiers(nn.Module):
    """Classifiers of some of the learning rates, behind one normalization.

    Args:
        width: D of the features.
        classes: number of classes.
        config: of the training.
        rates: learning rates per 256 images, a part of the configuration's.
    Source: MAE, arXiv 2111.06377, appendix A.1, for the batch norm and the initial weights N(0, .01²).
    Differs: a batch norm sees the batch of all processes, not that of each.
    """

    def __init__(self, width: int, classes: int, config: LinearConfig, rates: Iterable[float]):
        super().__init__()
        self.config, self.rates = config, tuple(rates)
        self.norm = nn.BatchNorm1d(width, eps=1e-6, affine=False) if config.normalize != "none" else nn.Identity()
        self.heads = nn.ModuleList(nn.Linear(width, classes) for _ in self.rates)
        for head in self.heads:
            nn.init.normal_(head.weight, std=0.01, generator=torch.Generator().manual_seed(config.seed))
            nn.init.zeros_(head.bias)

    def standardize(self, features: Tensor) -> None:
        """Normalize by the statistics of these features (n, D) from now on, whatever the batch."""
        self.norm.running_mean.copy_(features.mean(0))
        self.norm.running_var.copy_(features.var(0, correction=0))
        self.norm.momentum = 0.0

    def forward(self, features: Tensor) -> Tensor:
        """(n, D) -> (rates, n, classes)."""
        features = self.norm(features)
        return torch.stack([head(features) for head in self.heads])

    def train(self, mode: bool = True) -> "LinearClassifiers":
        super().train(mode)
        if self.config.normalize == "standardize":
            self.norm.eval()
        return self

    def make_optimizer(self) -> torch.optim.Optimizer:
        """SGD or LARS, a group of parameters for each weight and bias, with the peak of its rate."""
        scale = self.config.batch_size / BASE_BATCH_SIZE
        groups = [
            {"params": [parameter], "lr": rate * scale, "peak": rate * scale, "always_adapt": parameter.ndim > 1}
            for rate, head in zip(self.rates, self.heads, strict=True)
            for parameter in (head.weight, head.bias)
        ]
        make = Lars if self.config.optimizer == "lars" else torch.optim.SGD
        return make(groups, lr=0.0, momentum=0.9)

    def step(self, optimizer: torch.optim.Optimizer, features: Tensor, labels: Tensor, epoch: float) -> Tensor:
        """One step of all classifiers, none of which sees another's gradient; returns the losses (rates,).

        Args:
            features: (n, D) of a batch, with labels (n,).
            epoch: time at which the step is taken.
        """
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * self.config.rate_factor(epoch)
        logits = self(features)
        losses = torch.stack([F.cross_entropy(of_rate, labels) for of_rate in logits])
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        return losses.detach()

    @torch.no_grad()
    def accuracies(self, features: Tensor, labels: Tensor, chunk: int = 8192) -> Tensor:
        """Top-1 accuracies (rates,) in percent."""
        self.eval()
        right = sum(
            (self(part).argmax(-1) == truth).double().sum(1)
            for part, truth in zip(features.split(chunk), labels.split(chunk), strict=True)
        )
        return 100 * right / len(labels)
