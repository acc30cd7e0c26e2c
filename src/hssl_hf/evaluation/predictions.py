"""What a model predicts for the images of a split, in a file, so that models can be compared image by image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hssl_hf.errors import reading
from hssl_hf.evaluation.classification import Classification
from hssl_hf.evaluation.features import FeatureSet
from hssl_hf.evaluation.images import LabeledImages, Position
from hssl_hf.evaluation.tensor_file import read_tensors, write_tensors

MISTAKES, SIDE = 16, 96  # images that are kept, and their side in pixels
ENDING = ".predictions"


@dataclass(frozen=True)
class Predictions:
    """Predicted classes of test images.

    Args:
        subject, protocol: the model, and the evaluation with its settings, such as "k-NN k=20".
        dataset, split: of the images.
        result: what was predicted.
        classes: names of the classes; None where they are mere numbers.
        positions: (m, 2) shard and row of the images.
        mistakes: (k, 3, 96, 96) uint8, images that were classified wrongly with the greatest confidence.
        mistaken: (k,) their numbers.
    """

    subject: str
    protocol: str
    dataset: str
    split: str
    result: Classification
    classes: list[str] | None
    positions: Tensor
    mistakes: Tensor
    mistaken: Tensor

    def save(self, folder: Path) -> None:
        """Write the file into a folder; raises a UserError if that fails."""
        result, texts = self.result, {name: getattr(self, name) for name in ("subject", "protocol", "dataset", "split")}
        tensors = {"ranking": result.ranking, "confidence": result.confidence, "labels": result.labels}
        tensors |= {"positions": self.positions, "mistakes": self.mistakes, "mistaken": self.mistaken}
        write_tensors(folder, file_name(self.subject, self.protocol), tensors, {**texts, "classes": self.classes})

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        """
        Raises:
            UserError: if the file cannot be read.
        """
        with reading(path, "evaluate the model again"):
            tensors, extra = read_tensors(path.parent, path.name)
            result = Classification(*(tensors.pop(name) for name in ("ranking", "confidence", "labels")))
            predictions = cls(**extra, result=result, **tensors)
            predictions._require_consistency()
            return predictions

    def _require_consistency(self) -> None:
        """Raise a ValueError for shapes and types that do not go together."""
        result, texts = self.result, (self.subject, self.protocol, self.dataset, self.split, *(self.classes or ()))
        images, mistakes, integers = len(result.labels), len(self.mistaken), (torch.int64, torch.int32)
        shapes = [tuple(value.shape) for value in (result.confidence, result.labels, self.positions, self.mistakes)]
        if not all(isinstance(text, str) for text in texts) or not images or result.ranking.shape[:-1] != (images,):
            raise ValueError("expected names, and ranked classes of at least one image")
        if shapes != [(images,), (images,), (images, 2), (mistakes, 3, SIDE, SIDE)] or self.mistakes.dtype != torch.uint8:
            raise ValueError(f"expected predictions of {images} images and {mistakes} mistakes, got tensors of {shapes}")
        numbers = (result.ranking, result.labels, self.mistaken)
        if any(value.dtype not in integers for value in numbers) or any((value < 0).any() for value in numbers):
            raise ValueError("expected classes and images as integers from 0 on")
        if (self.mistaken >= images).any():
            raise ValueError(f"expected mistakes among {images} images")

    def class_name(self, number: int) -> str:
        return str(number) if self.classes is None or number >= len(self.classes) else self.classes[number]

    def accuracies(self) -> dict[str, float]:
        """Top-1 accuracy in percent of every class that occurs."""
        right = self.result.correct().double()
        return {
            self.class_name(number): 100 * right[self.result.labels == number].mean().item()
            for number in self.result.labels.unique().tolist()
        }

    def confusions(self, count: int) -> list[tuple[str, str, int]]:
        """True class, predicted class and number of images of the most frequent mistakes."""
        wrong = ~self.result.correct()
        pairs = torch.stack([self.result.labels[wrong], self.result.ranking[wrong, 0]], dim=1)
        unique, counts = pairs.unique(dim=0, return_counts=True)
        order = counts.argsort(descending=True, stable=True)[:count]
        return [(*map(self.class_name, unique[i].tolist()), int(counts[i])) for i in order.tolist()]


def file_name(subject: str, protocol: str) -> str:
    """Of the predictions of a model by a protocol."""
    plain = "".join(character if character.isalnum() else "-" for character in f"{protocol} {subject}")
    return f"{plain[-120:].strip('-')}{ENDING}"


def most_certain_mistakes(
    results: Sequence[Classification], split: FeatureSet, images: LabeledImages
) -> list[tuple[Tensor, Tensor]]:
    """The images that were classified wrongly with the greatest confidence, by each of several classifiers.

    Args:
        results: of the images of the split.
        images: of which the mistaken ones are read again, once for all classifiers.
    Returns:
        (k, 3, 96, 96) uint8 and their numbers (k,), in descending confidence.
    """
    worst = []
    for result in results:
        wrong = (~result.correct()).nonzero().flatten()
        worst.append(wrong[result.confidence[wrong].argsort(descending=True, stable=True)][:MISTAKES].tolist())
    numbers = {Position(*split.positions[number].tolist()): number for of_result in worst for number in of_result}
    samples = images.at(frozenset(numbers)).samples() if numbers else ()
    shown = {numbers[sample.position]: _thumbnail(sample.pixels) for sample in samples if sample.pixels is not None}
    kept = [[number for number in of_result if number in shown] for of_result in worst]
    return [(_stack([shown[number] for number in of_result]), torch.tensor(of_result)) for of_result in kept]


def _stack(images: list[Tensor]) -> Tensor:
    return torch.stack(images) if images else torch.empty(0, 3, SIDE, SIDE, dtype=torch.uint8)


def _thumbnail(pixels: Tensor) -> Tensor:
    """(3, 96, 96) of (C, H, W): the center of an image; of other channels the first three, or the mean of fewer."""
    side = min(pixels.shape[-2:])
    top, left = ((length - side) // 2 for length in pixels.shape[-2:])
    square = pixels[None, :, top : top + side, left : left + side].float()
    color = square[:, :3] if square.shape[1] >= 3 else square.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    resized = F.interpolate(color, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)
