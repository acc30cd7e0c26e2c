"""Weighted k-nearest-neighbor classification on frozen features: an evaluation without hyperparameters to tune."""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def knn_scores(
    train: Tensor, train_labels: Tensor, test: Tensor, num_neighbors: int = 20, temperature: float = 0.07, chunk: int = 1024
) -> Tensor:
    """Votes of the nearest training images, each with weight exp(cosine / T).

    Args:
        train: (n, D) features, any length.
        train_labels: (n,) integers from 0 on.
        test: (m, D) features.
        num_neighbors: k, at most n are used.
        temperature: T > 0.
        chunk: test images handled at once; bounds the memory at chunk × n.
    Returns:
        (m, classes) scores.
    Source: DINO and iBOT code; Wu et al., arXiv 1805.01978, section 3.4.
    """
    train, classes = F.normalize(train.float(), dim=1), int(train_labels.max()) + 1
    scores = []
    for features in F.normalize(test.float(), dim=1).split(chunk):
        similarity, index = (features @ train.T).topk(min(num_neighbors, len(train)), dim=1)
        votes = torch.zeros(len(features), classes)
        scores.append(votes.scatter_add_(1, train_labels[index], (similarity / temperature).exp()))
    return torch.cat(scores)
