"""Linear probe: a linear classifier on frozen features, its learning rate chosen on a part of the training images."""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hssl_hf.errors import UserError
from hssl_hf.evaluation.metrics import TopKAccuracy
from hssl_hf.evaluation.progress import ProgressBar
from hssl_hf.fields import BatchSize, Length, Range, Section, Seed


@dataclass(frozen=True)
class LinearConfig(Section):
    """How the classifiers are trained.

    Args:
        learning_rates: peak learning rates per 256 images, all tried at once; SGD with momentum .9, half a cosine to 0.
        epochs, batch_size: over the features of the training split, which are extracted once, without augmentation.
        validation_fraction: part of the training split that chooses among the learning rates and trains nothing.
        seed: of the classifiers, their order of images and the choice of that part.
    """

    learning_rates: Annotated[tuple[Annotated[float, Range(above=0, most=10_000)], ...], Length(1, 100)] = (
        0.003,
        0.01,
        0.03,
        0.1,
        0.3,
        1.0,
        3.0,
        10.0,
    )
    epochs: Annotated[int, Range(1, 1_000_000)] = 100
    batch_size: BatchSize = 1024
    validation_fraction: Annotated[float, Range(above=0, below=1)] = 0.1
    seed: Seed = 0


class LinearClassifiers(nn.Module):
    """One classifier per learning rate on features that are normalized by the statistics of the training images.

    Source: MAE, arXiv 2111.06377, appendix A.1, for the batch norm without scale and shift.
    Differs: SGD and cached features of the center crop instead of LARS and augmented images.
    """

    def __init__(self, features: Tensor, classes: int, config: LinearConfig):
        super().__init__()
        self.config = config
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("scale", (features.var(0, correction=0) + 1e-6).rsqrt())
        self.heads = nn.ModuleList(nn.Linear(features.shape[1], classes) for _ in config.learning_rates)
        generator = torch.Generator().manual_seed(config.seed)
        for head in self.heads:
            nn.init.normal_(head.weight, std=0.01, generator=generator)
            nn.init.zeros_(head.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(n, D) -> (learning rates, n, classes)."""
        normed = (features - self.mean) * self.scale
        return torch.stack([head(normed) for head in self.heads])

    def fit(self, features: Tensor, labels: Tensor, progress: str | None = None) -> None:
        """Train all classifiers on the same batches; none sees another's gradient."""
        config = self.config
        rates = [rate * config.batch_size / 256 for rate in config.learning_rates]
        groups = [{"params": head.parameters(), "lr": rate} for head, rate in zip(self.heads, rates, strict=True)]
        optimizer = torch.optim.SGD(groups, momentum=0.9)
        batches = -(-len(features) // config.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs * batches)
        generator = torch.Generator().manual_seed(config.seed)
        for _ in ProgressBar(range(config.epochs), desc=progress, unit="epoch", disable=progress is None, leave=False):
            for index in torch.randperm(len(features), generator=generator).split(config.batch_size):
                logits = self(features[index])
                loss = F.cross_entropy(logits.flatten(0, 1), labels[index].repeat(len(logits)), reduction="sum") / len(index)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()


def linear_accuracy(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], config: LinearConfig, progress: str | None = None
) -> dict[str, float]:
    """Train linear classifiers on one split, choose the best on a held-out part of it, and classify another split with it.

    Args:
        train, test: features (n, D) and labels (n,).
        progress: caption of a progress bar; None for none.
    Returns:
        top1 and top5 in percent, n test images, and the chosen learning_rate with its validation_top1.
    Raises:
        UserError: if the training split is too small to be divided, or a test label never occurs in it.
    """
    (features, labels), (test_features, test_labels) = train, test
    held_out = round(config.validation_fraction * len(labels))
    if not 0 < held_out < len(labels):
        raise UserError(f"{len(labels)} training images do not divide into a part to train and one to choose with")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(config.seed))
    validation, training = order[:held_out], order[held_out:]
    classifiers = LinearClassifiers(features[training], int(labels.max()) + 1, config)
    classifiers.fit(features[training], labels[training], progress)
    with torch.no_grad():
        accuracies = (classifiers(features[validation]).argmax(-1) == labels[validation]).float().mean(1)
        best = int(accuracies.argmax())
        scores = classifiers(test_features)[best]
    if int(test_labels.max()) >= scores.shape[1]:
        raise UserError(
            f"the test images have label {int(test_labels.max())}, the training images only 0 to {scores.shape[1] - 1}"
        )
    top_k = TopKAccuracy(keep_in_memory=True).compute(predictions=scores, references=test_labels)
    chosen = {"learning_rate": config.learning_rates[best], "validation_top1": 100 * accuracies[best].item()}
    return {**top_k, "n": len(test_labels), **chosen}
