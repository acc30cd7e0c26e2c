"""Weighted k-nearest-neighbor classification on frozen features: an evaluation without hyperparameters to tune."""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from hssl_hf.errors import UserError
from hssl_hf.fields import Images, Temperature, check

logger = logging.getLogger(__name__)


@torch.no_grad()
def knn_scores(
    train: Tensor, train_labels: Tensor, test: Tensor, num_neighbors: int = 20, temperature: float = 0.07, chunk: int = 1024
) -> Tensor:
    """Votes of the nearest training images, each with weight exp(cosine / T).

    Args:
        train: (n, D) features, any length.
        train_labels: (n,) integers from 0 on.
        test: (m, D) features.
        num_neighbors: k, at least 1; of fewer training images all are used, with a warning.
        temperature: T, from 0.001 to 100.
        chunk: test images handled at once; bounds the memory at chunk × n.
    Returns:
        (m, classes) scores, as fractions of the weight of the nearest training image.
    Raises:
        UserError: for other numbers, and if there are no training images or a label is below 0.
    Source: DINO and iBOT code; Wu et al., arXiv 1805.01978, section 3.4.
    """
    num_neighbors = check(Images, num_neighbors, "num_neighbors")
    temperature = check(Temperature, temperature, "temperature")
    if not len(train) or int(train_labels.min()) < 0:
        raise UserError("expected training images with integer labels from 0 on, got none or a label below 0")
    if num_neighbors > len(train):
        logger.warning("num_neighbors=%d, but there are %d training images: all are used", num_neighbors, len(train))
    train, classes = F.normalize(train.float(), dim=1), int(train_labels.max()) + 1
    scores = []
    for features in F.normalize(test.float(), dim=1).split(chunk):
        similarity, index = (features @ train.T).topk(min(num_neighbors, len(train)), dim=1)
        weights = ((similarity - similarity[:, :1]) / temperature).exp()  # the nearest, which comes first, has weight 1
        scores.append(torch.zeros(len(features), classes).scatter_add_(1, train_labels[index], weights))
    return torch.cat(scores)
