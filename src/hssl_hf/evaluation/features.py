"""Labeled images -> features."""

import logging
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from hssl_hf.data.decode import CorruptImageError, LazyImage
from hssl_hf.data.errors import StreamError
from hssl_hf.data.image_cells import image_bytes
from hssl_hf.data.local_dataset import LeftOut
from hssl_hf.data.source import Source, load_source, resolve_classes
from hssl_hf.errors import UserError, reading
from hssl_hf.evaluation.encoder import Encoder
from hssl_hf.evaluation.labels import class_of, require_integer_column
from hssl_hf.evaluation.progress import ProgressBar

BATCH_SIZE = 256
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabeledImages:
    """A split of images with integer labels.

    Args:
        source: where images and labels are.
        limit: use the first images only; None for all.
        channels: C, as in `LazyImage.decode`.
    """

    source: Source
    limit: int | None = None
    channels: int = 3

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        """(C, H, W) uint8 and label.

        Warnings name images that cannot be decoded, which are left out, and files with several, of which the first is read.

        Raises:
            StreamError: if no image is left, or the label of one is no class.
        """
        column = self.source.label_column
        dataset = load_source(self.source, also=[column])
        require_integer_column(dataset.features, self.source)
        chosen = resolve_classes(self.source, dataset)
        rows = ((image, class_of(label, (image or {}).get("path"), self.source)) for image, label in self._cells(dataset))
        empty, reason, left_out, several = True, "", LeftOut(), LeftOut()
        for image, label in islice((row for row in rows if chosen is None or row[1] in chosen), self.limit):
            name = (image or {}).get("path") or "without a name"
            try:
                encoded = LazyImage(image_bytes(image, self.source))
                pixels = encoded.decode(channels=self.channels)
            except CorruptImageError as error:
                reason = f"; the last one cannot be decoded: {error}"
                left_out.add("that cannot be decoded", name)
            else:
                if encoded.has_other_frames():
                    several.add("files with several images", name)
                yield pixels, label
                empty = False
        if empty:
            raise StreamError(f"split {self.source.split!r} of {self.source.path!r} has no images to evaluate on{reason}")
        if left_out:
            logger.warning("split %r of %r: left out are %s images", self.source.split, self.source.path, left_out)
        if several:
            _warn_once(f"split {self.source.split!r} of {self.source.path!r}: the first image is read of {several}")

    def _cells(self, dataset) -> Iterator[tuple]:
        """Encoded images and their labels as they are."""
        name, column = f"split {self.source.split!r} of {self.source.path!r}", self.source.label_column
        with reading(name, f"expected images, and in the column {column!r} integers, in all splits", StreamError):
            for batch in dataset.iter(batch_size=64):
                yield from zip(batch["image"], batch[column], strict=True)


@cache
def _warn_once(message: str) -> None:
    """A warning that is not repeated when the same images are read again, as by the probes of a run."""
    logger.warning("%s", message)


class Seen:
    """Images that pass on, noted by a checksum of their pixels.

    Args:
        images: (C, H, W) and label.
    """

    def __init__(self, images: Iterable[tuple[Tensor, int]]):
        self.images, self.checksums = images, []

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        for pixels, label in self.images:
            self.checksums.append(zlib.crc32(pixels.contiguous().numpy(), zlib.adler32(str(tuple(pixels.shape)).encode())))
            yield pixels, label

    def among(self, others: "Seen") -> int:
        """How many of these images are among the others too."""
        known = set(others.checksums)
        return sum(checksum in known for checksum in self.checksums)


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
    encoder: Encoder, processor: Callable, images: Iterable[tuple[Tensor, int]], kind: str = "cls", progress: str | None = None
) -> tuple[Tensor, Tensor]:
    """Image-level features of labeled images.

    Args:
        encoder: pixels -> cls, patches.
        processor: an image processor of transformers.
        images: (C, H, W) and label, such as `LabeledImages`.
        kind: of features, `image_features`.
        progress: caption of a progress bar; None for none.
    Returns:
        features (n, D) float32 and labels (n,) int64.
    Raises:
        UserError: if features are not finite.
    """
    features, labels, iterator = [], [], iter(images)
    with ProgressBar(desc=progress, unit="img", disable=progress is None, leave=False) as bar:
        while batch := list(islice(iterator, BATCH_SIZE)):
            pixels = processor([image for image, _ in batch], return_tensors="pt")["pixel_values"]
            features.append(image_features(*encoder(pixels), kind).float().cpu())
            labels += [label for _, label in batch]
            bar.update(len(batch))
    joined = torch.cat(features)
    if bad := int((~joined.isfinite().all(dim=1)).sum()):
        raise UserError(
            f"the features of {bad} of {len(joined)} images are infinite or not numbers, so that a figure would mean nothing; "
            "check the weights of the model, and the pixels of the images"
        )
    return joined, torch.tensor(labels)
