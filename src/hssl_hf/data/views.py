"""Encoded images -> views: the crops that one step sees.

Legend of all shapes: V global views, L local views, B images, C channels, h×w grid of patches.

Workers decode, crop and draw (`augmentation.py`); color operations are applied behind the loader (`color.py`).
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from hssl_hf.data import color_opencv, color_torch
from hssl_hf.data.augmentation import Augmentation, ViewConfig
from hssl_hf.data.decode import CorruptImageError
from hssl_hf.data.errors import StreamError
from hssl_hf.data.stream import ImageStream
from hssl_hf.errors import UserError


class TooManyCorruptImagesError(UserError):
    """More images than allowed cannot be decoded."""


@dataclass(frozen=True)
class Views:
    """What one step sees.

    Args:
        pixel_values: (V, B, C, H, W), uint8 from the loader, normalized floats after `augment_and_normalize`.
        local_pixel_values: (L, B, C, h, w) in the same form, or None.
        global_color_ops, local_color_ops: (V or L, B, 11) color operations drawn for each view; None once they are applied.
        bool_masked_pos: (V', B, h, w) bool of the views that are masked, True = masked; None without masks.
        mask_indices: positions of the masked patches in the flattened mask.
        crop_boxes: (V, B, 5) float32 top, left, height, width of the global views in pixels of the image, and 1 where flipped.
        corrupt: names of images skipped on the way to this batch.
        first_of_several: names of images, in the first pass over the data, whose files hold further ones, which are not read.
        labels: of the images, as the data has them, where labels are read.
    """

    pixel_values: Tensor
    local_pixel_values: Tensor | None
    global_color_ops: Tensor | None
    local_color_ops: Tensor | None
    bool_masked_pos: Tensor | None
    mask_indices: Tensor | None
    crop_boxes: Tensor
    corrupt: tuple[str, ...] = ()
    first_of_several: tuple[str, ...] = ()
    labels: tuple = ()

    def to(self, device: torch.device) -> "Views":
        """Move all but the color operations, which are selected on the host without waiting for the device."""
        moving = {name: value for name, value in self.tensors().items() if not name.endswith("_color_ops")}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in moving.items()})

    def pin_memory(self) -> "Views":
        return replace(self, **{name: value.pin_memory() for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Tensors by name: the arguments of a model's forward."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}

    def augment_and_normalize(self, config: ViewConfig) -> "Views":
        """Apply the color operations that were drawn and normalize."""
        backend = color_opencv if self.pixel_values.device.type == "cpu" else color_torch

        def applied(pixels: Tensor | None, drawn: Tensor | None) -> Tensor | None:
            return None if pixels is None else backend.apply_color_ops(pixels, drawn, config.mean, config.std)

        return replace(
            self,
            pixel_values=applied(self.pixel_values, self.global_color_ops),
            local_pixel_values=applied(self.local_pixel_values, self.local_color_ops),
            global_color_ops=None,
            local_color_ops=None,
        )


def collate(samples: list[dict]) -> Views:
    """Stack samples along the second axis, behind the axis of views."""

    def stack(name: str) -> Tensor | None:
        return None if samples[0][name] is None else torch.stack([sample[name] for sample in samples], dim=1)

    def stack_pixels(name: str) -> Tensor | None:
        """With channels last in memory, as decoders and resizing leave them."""
        stacked = stack(name)
        return None if stacked is None else stacked.permute(0, 1, 4, 2, 3)

    def names(key: str) -> tuple[str, ...]:
        return tuple(name for sample in samples for name in sample.get(key, ()))

    masks = stack("bool_masked_pos")
    return Views(
        **{name: stack_pixels(name) for name in ("pixel_values", "local_pixel_values")},
        **{name: stack(name) for name in ("global_color_ops", "local_color_ops", "crop_boxes")},
        bool_masked_pos=masks,
        mask_indices=None if masks is None else masks.flatten().nonzero().flatten(),
        corrupt=names("corrupt"),
        first_of_several=names("first_of_several"),
        labels=tuple(sample.get("label") for sample in samples),
    )


class ViewStream(torch.utils.data.IterableDataset):
    """The stream with every image decoded and augmented; what cannot be decoded is skipped and reported.

    Args:
        images: encoded images.
        augmentation: image -> views.
        max_corrupt_fraction: fraction of undecodable images at which reading stops with an error, from the 100th image on.
        fraction: of the images to use, chosen by a checksum of their bytes.
    Raises:
        TooManyCorruptImagesError: while iterating, if more images cannot be decoded.
        StreamError: while iterating, if a pass over the images gives none.
    """

    def __init__(
        self, images: ImageStream, augmentation: Augmentation, max_corrupt_fraction: float = 0.01, fraction: float = 1.0
    ):
        self.images, self.augmentation = images, augmentation
        self.max_corrupt_fraction, self.fraction = max_corrupt_fraction, fraction
        self._read = self._corrupt = 0

    def state_dict(self) -> dict:
        return {"images": self.images.state_dict(), "read": self._read, "corrupt": self._corrupt}

    def load_state_dict(self, state: Mapping) -> None:
        self.images.load_state_dict(state["images"])
        self._read, self._corrupt = state["read"], state["corrupt"]

    def reshard_from(self, states: Sequence[Mapping]) -> None:
        """Continue where another number of workers stopped, whose `state_dict`s these are."""
        self.images.reshard_from([state["images"] for state in states])
        self._read, self._corrupt = (sum(state[name] for state in states) // len(states) for name in ("read", "corrupt"))

    def __iter__(self) -> Iterator[dict]:
        skipped: list[str] = []
        unused_since: int | None = None  # epoch of the first of the images that have given nothing in succession
        for encoded in self.images:
            unused_since = encoded.epoch if unused_since is None else unused_since
            if encoded.epoch > unused_since + 1:
                raise StreamError(
                    f"no image of a pass over {self.images.source.path!r} can be used: {self._corrupt} of {self._read} cannot "
                    f"be decoded, and others are not among the data.fraction={self.fraction:g} that are used"
                )
            if zlib.crc32(encoded.data) >= self.fraction * 2**32:
                continue
            self._read += 1
            try:
                sample = self.augmentation.decode_and_augment(encoded)
            except CorruptImageError as error:
                self._corrupt += 1
                skipped.append(encoded.name)
                if self._read >= 100 and self._corrupt > self.max_corrupt_fraction * self._read:
                    raise TooManyCorruptImagesError(
                        f"{self._corrupt} of {self._read} images cannot be decoded, more than "
                        f"data.max_corrupt_fraction={self.max_corrupt_fraction}; the last one is {encoded.name!r}: {error}. "
                        "Repair the data, or allow a larger fraction."
                    ) from error
            else:
                yield {**sample, "corrupt": skipped, "label": encoded.label}
                skipped, unused_since = [], None
