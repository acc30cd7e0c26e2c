"""Weighted k-nearest-neighbor classification on frozen features: an evaluation without hyperparameters to tune."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from hssl_hf.engine.distributed import gather_rows
from hssl_hf.errors import UserError
from hssl_hf.evaluation.classification import Classification, rank_classes
from hssl_hf.evaluation.features import FeatureSet
from hssl_hf.fields import Ascending, Distinct, Images, Length, Section, Temperature, check

SIMILARITIES = 2**28  # that are held at once, 1 GiB
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KNNConfig(Section):
    """How neighbors vote.

    Args:
        num_neighbors: numbers k of neighbors, each of which gives a figure; the papers report the best of 10 and 20.
        temperature: T.
    """

    num_neighbors: Annotated[tuple[Images, ...], Length(1, 32), Ascending(), Distinct()] = (10, 20, 100, 200)
    temperature: Temperature = 0.07


@torch.no_grad()
def knn_scores(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    num_neighbors: int = 20,
    temperature: float = 0.07,
    chunk: int | None = None,
) -> Tensor:
    """Votes of the nearest training images, each with weight exp(cosine / T).

    Args:
        train: (n, D) features, any length.
        train_labels: (n,) integers from 0 on.
        test: (m, D) features.
        num_neighbors: k, at least 1; of fewer training images all are used, with a warning.
        temperature: T, from 0.001 to 100.
        chunk: test images handled at once; None for as many as need 1 GiB of similarities.
    Returns:
        (m, classes) scores, as fractions of the weight of the nearest training image.
    Raises:
        UserError: for other numbers, and if there are no training images or a label is below 0.
    Source: DINO and iBOT code; Wu et al., arXiv 1805.01978, section 3.4.
    """
    votes = _votes(train, train_labels, test, [num_neighbors], temperature, chunk)
    return torch.cat([scores for (scores,) in votes])


@torch.no_grad()
def knn_accuracy(accelerator: Accelerator, train: FeatureSet, test: FeatureSet, config: KNNConfig) -> dict[int, Classification]:
    """Classes of the test images by every number of neighbors. Each process classifies its part of them, on its device.

    Raises:
        UserError: as `knn_scores`.
    """
    device, processes = accelerator.device, accelerator.num_processes
    own = test.features[accelerator.process_index :: processes].to(device)
    votes = _votes(train.features.to(device), train.labels.to(device), own, config.num_neighbors, config.temperature)
    by_number = zip(*([rank_classes(scores, scores.sum(1)) for scores in chunk] for chunk in votes), strict=True)
    order = torch.cat([torch.arange(rank, len(test), processes) for rank in range(processes)]).argsort()
    results = {}
    for number, chunks in zip(config.num_neighbors, by_number, strict=True):
        ranking, confidence = (gather_rows(accelerator, torch.cat(values))[order] for values in zip(*chunks, strict=True))
        results[number] = Classification(ranking, confidence, test.labels)
    return results


def _votes(
    train: Tensor, labels: Tensor, test: Tensor, numbers: Sequence[int], temperature: float, chunk: int | None = None
) -> Iterator[list[Tensor]]:
    """(chunk, classes) scores by every number of neighbors, for one chunk of the test images after another."""
    numbers = [check(Images, number, "num_neighbors") for number in numbers]
    temperature = check(Temperature, temperature, "temperature")
    if not len(train) or int(labels.min()) < 0:
        raise UserError("expected training images with integer labels from 0 on, got none or a label below 0")
    if max(numbers) > len(train):
        logger.warning("num_neighbors=%d, but there are %d training images: all are used", max(numbers), len(train))
    train, classes = F.normalize(train.float(), dim=1), int(labels.max()) + 1
    most, chunk = min(max(numbers), len(train)), chunk or max(1, min(1024, SIMILARITIES // len(train)))
    for features in F.normalize(test.float(), dim=1).split(chunk):
        similarity, index = (features @ train.T).topk(most, dim=1)
        weights = ((similarity - similarity[:, :1]) / temperature).exp()  # the nearest, which comes first, has weight 1
        voted = labels[index]
        empty = torch.zeros(len(features), classes, device=train.device)
        yield [empty.scatter_add(1, voted[:, :number], weights[:, :number]) for number in numbers]
