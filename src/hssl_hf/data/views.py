"""Encoded images -> views: the crops that one step sees.

Legend of all shapes: V global views, L local views, B images, h×w grid of patches.

Workers decode, crop and draw (`augmentation.py`); colour operations are applied behind the loader (`colour.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from hssl_hf.data import color_opencv, color_torch
from hssl_hf.data.augmentation import Augmentation, ViewConfig, identify
from hssl_hf.data.decode import CorruptImageError
from hssl_hf.data.stream import EncodedImage, ImageStream
from hssl_hf.errors import UserError


class CorruptShareError(UserError):
    """More images than allowed cannot be decoded."""


@dataclass(frozen=True)
class Views:
    """What one step sees.

    Args:
        global_pixels: (V, B, 3, H, W), uint8 from the loader, normalised floats after `coloured`.
        local_pixels: (L, B, 3, h, w) in the same form, or None.
        global_colours, local_colours: (V or L, B, 11) colour operations drawn for each view; None after `coloured`.
        masks: (V', B, h, w) bool of the views that are masked, True = hidden from the student; None where nothing is masked.
        masked_indices: positions of the hidden patches in the flattened masks.
        crops: (V, B, 5) float32 top, left, height, width of the global views in pixels of the image, and 1 where mirrored.
        corrupt: names of images skipped on the way to this batch.
    """

    global_pixels: Tensor
    local_pixels: Tensor | None
    global_colours: Tensor | None
    local_colours: Tensor | None
    masks: Tensor | None
    masked_indices: Tensor | None
    crops: Tensor
    corrupt: tuple[str, ...] = ()

    def to(self, device: torch.device) -> "Views":
        """Move all but the colours, whose indices are worked out on the host without waiting for the device."""
        moving = {name: value for name, value in self.tensors().items() if not name.endswith("_colours")}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in moving.items()})

    def pin_memory(self) -> "Views":
        return replace(self, **{name: value.pin_memory() for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """What is there, by name: the arguments of a model's forward."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}

    def coloured(self, config: ViewConfig) -> "Views":
        """Apply the colour operations that were drawn and normalise."""
        colour = color_opencv.colour if self.global_pixels.device.type == "cpu" else color_torch.colour

        def applied(pixels: Tensor | None, drawn: Tensor | None) -> Tensor | None:
            return None if pixels is None else colour(pixels, drawn, config.mean, config.std)

        return replace(
            self,
            global_pixels=applied(self.global_pixels, self.global_colours),
            local_pixels=applied(self.local_pixels, self.local_colours),
            global_colours=None,
            local_colours=None,
        )


def collate(samples: list[dict]) -> Views:
    """Stack samples along the second axis, behind the axis of views."""

    def stack(name: str) -> Tensor | None:
        return None if samples[0][name] is None else torch.stack([sample[name] for sample in samples], dim=1)

    def stack_pixels(name: str) -> Tensor | None:
        """With channels last in memory, as decoders and resizing leave them."""
        stacked = stack(name)
        return None if stacked is None else stacked.permute(0, 1, 4, 2, 3)

    masks = stack("masks")
    return Views(
        **{name: stack_pixels(name) for name in ("global_pixels", "local_pixels")},
        **{name: stack(name) for name in ("global_colours", "local_colours", "crops")},
        masks=masks,
        masked_indices=None if masks is None else masks.flatten().nonzero().flatten(),
        corrupt=tuple(name for sample in samples for name in sample["corrupt"]),
    )


class ViewStream(torch.utils.data.IterableDataset):
    """The stream with every image decoded and augmented; what cannot be decoded is skipped and reported.

    Args:
        images: encoded images.
        augmentation: image -> views.
        corrupt_share: share of undecodable images at which to give up, judged from the 100th image on.
        share: of the images to use, chosen by a checksum of their bytes.
    Raises:
        CorruptShareError: while iterating, if more images than that cannot be decoded.
    """

    def __init__(self, images: ImageStream, augmentation: Augmentation, corrupt_share: float = 0.01, share: float = 1.0):
        self.images, self.augmentation, self.corrupt_share, self.share = images, augmentation, corrupt_share, share
        self._read = self._corrupt = 0

    def state_dict(self) -> dict:
        return {"images": self.images.state_dict(), "read": self._read, "corrupt": self._corrupt}

    def load_state_dict(self, state: Mapping) -> None:
        self.images.load_state_dict(state["images"])
        self._read, self._corrupt = state["read"], state["corrupt"]

    def inherit(self, states: Sequence[Mapping]) -> None:
        """Go on where another number of readers stopped, whose `state_dict`s these are."""
        self.images.inherit([state["images"] for state in states])
        self._read, self._corrupt = (sum(state[name] for state in states) // len(states) for name in ("read", "corrupt"))

    def __iter__(self) -> Iterator[dict]:
        skipped: list[str] = []
        for encoded in self.images:
            if identify(encoded.data) >= self.share * 2**32:
                continue
            self._read += 1
            try:
                sample = self.augmentation.of(encoded)
            except CorruptImageError as error:
                self._corrupt += 1
                skipped.append(encoded.name)
                self._judge(encoded, error)
                continue
            yield {**sample, "corrupt": skipped}
            skipped = []

    def _judge(self, encoded: EncodedImage, error: CorruptImageError) -> None:
        if self._read >= 100 and self._corrupt > self.corrupt_share * self._read:
            raise CorruptShareError(
                f"{self._corrupt} of {self._read} images cannot be decoded, more than data.corrupt_share={self.corrupt_share}; "
                f"the last one is {encoded.name!r}: {error}. Repair the data, or allow a larger share."
            ) from error
