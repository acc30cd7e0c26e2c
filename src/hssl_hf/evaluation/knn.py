"""Weighted k-nearest-neighbor classification on frozen features: an evaluation without hyperparameters to tune."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hssl_hf.evaluation.encoder import Encoder
from hssl_hf.evaluation.features import LabeledImages, extract
from hssl_hf.evaluation.metrics import TopKAccuracy


@torch.no_grad()
def knn_scores(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, num_neighbors: int = 20, temperature: float = 0.07, chunk: int = 1024
) -> Tensor:
    """Votes of the nearest bank images, each with weight exp(cosine / T).

    Args:
        bank: (n, D) features, any length.
        bank_labels: (n,) integers from 0 on.
        queries: (m, D) features.
        num_neighbors: k, at most n are used.
        temperature: T > 0.
        chunk: queries handled at once; bounds the memory at chunk × n.
    Returns:
        (m, classes) scores.
    Source: DINO and iBOT code; Wu et al., arXiv 1805.01978, section 3.4.
    """
    bank, classes = F.normalize(bank.float(), dim=1), int(bank_labels.max()) + 1
    scores = []
    for part in F.normalize(queries.float(), dim=1).split(chunk):
        similarity, index = (part @ bank.T).topk(min(num_neighbors, len(bank)), dim=1)
        votes = torch.zeros(len(part), classes)
        scores.append(votes.scatter_add_(1, bank_labels[index], (similarity / temperature).exp()))
    return torch.cat(scores)


def knn_accuracy(
    encoder: Encoder,
    processor: Callable,
    bank: LabeledImages,
    queries: LabeledImages,
    num_neighbors: int = 20,
    temperature: float = 0.07,
    kind: str = "cls",
    progress: str | None = None,
) -> dict[str, float]:
    """Classify the queries by their nearest neighbors in the bank.

    Args:
        kind: of features, "cls" or "patches" (`image_features`).
    Returns:
        top1 and top5 in percent, and n, the number of queries.
    """
    bank_features, bank_labels = extract(encoder, processor, bank, kind, progress=progress and f"{progress}: bank")
    features, labels = extract(encoder, processor, queries, kind, progress=progress and f"{progress}: queries")
    scores = knn_scores(bank_features, bank_labels, features, num_neighbors, temperature)
    accuracy = TopKAccuracy(keep_in_memory=True).compute(predictions=scores.numpy(), references=labels.numpy())
    return {**accuracy, "n": len(labels)}
