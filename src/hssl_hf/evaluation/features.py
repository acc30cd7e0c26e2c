"""Labeled images -> features."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from hssl_hf.data.decode import CorruptImageError, decode
from hssl_hf.data.source import Source, StreamError, image_bytes, load_source, resolve_classes
from hssl_hf.evaluation.encoder import Encoder


@dataclass(frozen=True)
class LabeledImages:
    """A split of images with integer labels.

    Args:
        source: where the images are.
        label_column: their labels.
        limit: use the first images only; None for all.
    """

    source: Source
    label_column: str = "label"
    limit: int | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        """(3, H, W) uint8 and label; images that cannot be decoded are left out."""
        dataset = load_source(self.source, also=[self.label_column])
        chosen = resolve_classes(self.source, dataset)
        rows = (row for row in _rows(dataset) if chosen is None or row[self.label_column] in chosen)
        for row in islice(rows, self.limit):
            try:
                yield decode(image_bytes(row["image"])), int(row[self.label_column])
            except CorruptImageError:
                continue


def _rows(dataset) -> Iterator[dict]:
    for batch in dataset.iter(batch_size=64):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def image_features(cls: Tensor, patches: Tensor, kind: str) -> Tensor:
    """The representation of an image.

    Args:
        cls: (B, D) class tokens.
        patches: (B, h, w, D) patch tokens.
        kind: "cls", or "patches" for the mean of the patches, layer-normalized without scale and shift, on which SiameseIM is
            probed and fine-tuned.
    Returns:
        (B, D).
    """
    return cls if kind == "cls" else F.layer_norm(patches.mean((1, 2)), patches.shape[-1:], eps=1e-6)


def extract(
    encoder: Encoder,
    processor: Callable,
    images: LabeledImages,
    kind: str = "cls",
    batch_size: int = 256,
    progress: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Image-level features of a labeled split.

    Args:
        encoder: pixels -> cls, patches.
        processor: an image processor of transformers.
        kind: of features, `image_features`.
        progress: caption of a progress bar; None for none.
    Returns:
        features (n, D) float32 and labels (n,) int64.
    Raises:
        StreamError: if the split is empty.
    """
    features, labels, iterator = [], [], iter(images)
    with tqdm(desc=progress, unit="img", disable=progress is None, leave=False) as bar:
        while batch := list(islice(iterator, batch_size)):
            pixels = processor([image for image, _ in batch], return_tensors="pt")["pixel_values"]
            features.append(image_features(*encoder(pixels), kind).float().cpu())
            labels += [label for _, label in batch]
            bar.update(len(batch))
    if not labels:
        raise StreamError(f"split {images.source.split!r} of {images.source.path!r} has no images to evaluate on")
    return torch.cat(features), torch.tensor(labels)
