"""What stands for an image: a vector that is made of the outputs of an encoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hssl_hf.data.source import Source
from hssl_hf.errors import UserError
from hssl_hf.evaluation.encoder import Encoder
from hssl_hf.evaluation.labels import Label, number_labels
from hssl_hf.fields import Range, Section

Features = Literal["cls", "patches", "cls_and_patches"]


@dataclass(frozen=True)
class Representation(Section):
    """Which outputs of an encoder stand for an image.

    Args:
        features: cls, the class token (of models without one, what the model pools); patches, the mean of the patches, layer-
            normalized without scale and shift, on which SiameseIM is probed and fine-tuned; or cls_and_patches, the class token
            beside the mean of the patches, as iBOT probes ViT-B and larger ones.
        blocks: how many of the last blocks, whose vectors are concatenated.
    """

    features: Features = "cls"
    blocks: Annotated[int, Range(1, 64)] = 1

    def __call__(self, encoder: Encoder | Callable, pixels: Tensor) -> Tensor:
        """(B, D) float32 for pixels (B, C, H, W).

        Args:
            encoder: pixels -> cls (B, C) and patches (B, h, w, C); of several blocks, an `Encoder`.
        Raises:
            UserError: if the encoder has fewer blocks.
        """
        if self.blocks == 1:
            outputs = [encoder(pixels)]
        else:
            if self.blocks > encoder.num_blocks:
                raise UserError(f"{encoder.name!r} has {encoder.num_blocks} blocks, got representation.blocks={self.blocks}")
            outputs = encoder.forward_intermediates(pixels, range(-self.blocks, 0), encoder.norm)
        return torch.cat([image_features(cls, patches, self.features).float() for cls, patches in outputs], dim=1)


def image_features(cls: Tensor, patches: Tensor, kind: str) -> Tensor:
    """The vector of an image by one block.

    Args:
        cls: (B, D) class tokens.
        patches: (B, h, w, D) patch tokens.
        kind: as `Representation.features`.
    Returns:
        (B, D), or (B, 2 D) of cls_and_patches.
    """
    if kind == "cls":
        return cls
    mean = patches.mean((1, 2))
    return F.layer_norm(mean, mean.shape[-1:], eps=1e-6) if kind == "patches" else torch.cat([cls, mean], dim=1)


@dataclass(frozen=True)
class FeatureSet:
    """Features of the images of a split, in the order of their positions.

    Args:
        features: (n, D) float32.
        labels: (n,) int64.
        classes: names of the classes; None where labels are mere numbers.
        positions: (n, 2) int64, shard and row of each image.
        checksums: (n,) int64, of the bytes.
    """

    features: Tensor
    labels: Tensor
    classes: list[str] | None
    positions: Tensor
    checksums: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def joined(
        cls, features: Tensor, labels: Sequence[Label], names: Sequence[str] | None, keys: Tensor, source: Source
    ) -> "FeatureSet":
        """From images in any order, of which some may occur twice.

        Args:
            labels: as the data has them, with the names of the classes, where they are known.
            keys: (n, 3) int64: shard, row, checksum.
            source: of the images, for messages.
        Raises:
            UserError: if features are not finite, or labels no classes.
        """
        _, inverse = keys[:, :2].unique(dim=0, return_inverse=True)  # in ascending order
        first = torch.full((int(inverse.max()) + 1,), len(keys)).scatter_reduce(0, inverse, torch.arange(len(keys)), "amin")
        features, keys = features[first], keys[first]
        if bad := int((~features.isfinite().all(dim=1)).sum()):
            raise UserError(
                f"the features of {bad} of {len(features)} images are infinite or not numbers, so that a figure would mean "
                "nothing; check the weights of the model, and the pixels of the images"
            )
        numbers, classes = number_labels([labels[index] for index in first.tolist()], names, source)
        return cls(features, numbers, classes, keys[:, :2], keys[:, 2])

    def among(self, other: "FeatureSet") -> int:
        """How many of these images are among the others too, by their bytes."""
        return int(torch.isin(self.checksums, other.checksums).sum())
