"""Encoded images -> views: the crops that one step sees.

Legend of all shapes: V global views, L local views, B images, h×w grid of patches.

Workers decode, crop, resize and flip on uint8, and draw every random number of an image from a counter-based generator keyed
by (seed, epoch, image, view), where the image is known by its bytes: an image is treated alike in an epoch whatever the
number of processes or workers. Colour operations come later, batched, on the device (`colour.py`).
"""

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resized_crop

from hssl_hf.colour import ColourJitter, colour, draw_colour
from hssl_hf.decode import CorruptImageError, decode
from hssl_hf.masking import MASKS, draw_ratio
from hssl_hf.stream import EncodedImage, ImageStream

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class CorruptShareError(ValueError):
    """More images than allowed cannot be decoded."""


@dataclass(frozen=True)
class ViewConfig:
    """How an image becomes views. The defaults are those of DINO and iBOT; lists hold one value per global view.

    Args:
        global_size, local_size: side of the crops in pixels.
        global_scale, local_scale: range of the crop's share of the image's area.
        local_number: local crops per image (L); 0 for none.
        interpolation: how crops are resized, with antialiasing.
        flip_probability: chance of a horizontal flip.
        jitter: strengths of brightness, contrast, saturation and hue, and the chance that they are applied.
        grey_probability: chance of a grey image.
        global_blur, local_blur: chance of a Gaussian blur.
        blur_sigma: range of its standard deviation in pixels.
        global_solarize: chance of inverting all values from one half on.
        mean, std: normalisation of each channel, on values in [0, 1].
    Source: facts of DINO (arXiv 2104.14294) and iBOT (arXiv 2111.07832) code; crops of HSSL, Table 20.
    """

    global_size: int = 224
    global_scale: tuple[float, float] = (0.25, 1.0)
    local_number: int = 10
    local_size: int = 96
    local_scale: tuple[float, float] = (0.05, 0.25)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    flip_probability: float = 0.5
    jitter: ColourJitter = field(default_factory=ColourJitter)
    grey_probability: float = 0.2
    global_blur: tuple[float, ...] = (1.0, 0.1)
    local_blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    global_solarize: tuple[float, ...] = (0.0, 0.2)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self):
        if len(self.global_blur) != len(self.global_solarize):
            raise ValueError(
                f"expected one chance per global view, got {len(self.global_blur)} in views.global_blur and "
                f"{len(self.global_solarize)} in views.global_solarize"
            )


@dataclass(frozen=True)
class MaskConfig:
    """Which patches of the global views the student does not see.

    Args:
        shape: "block", "random", or "counted_block" (equally many patches in every image, `masking.py`).
        ratios, spreads: a view takes one of the ratios with equal chance, widened to ratio ± spread.
    Source: iBOT, `pred_shape`, `pred_ratio`, `pred_ratio_var`; HSSL, Table 20.
    """

    shape: Literal["block", "counted_block", "random"] = "block"
    ratios: tuple[float, ...] = (0.0, 0.3)
    spreads: tuple[float, ...] = (0.0, 0.2)

    @property
    def counted(self) -> bool:
        """Whether every image hides equally many patches."""
        return self.shape != "block" and len(self.ratios) == 1 and not any(self.spreads)


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
        return replace(
            self,
            global_pixels=colour(self.global_pixels, self.global_colours, config.mean, config.std),
            local_pixels=None
            if self.local_pixels is None
            else colour(self.local_pixels, self.local_colours, config.mean, config.std),
            global_colours=None,
            local_colours=None,
        )


class Augmentation:
    """One image -> its views: crops on uint8, colour operations drawn but not applied, masks.

    Args:
        config: the views.
        masks: how to mask the global views, None for not at all.
        grid: (h, w) patches of a global view; needed with masks.
        seed: seed of every draw.
        masked_views: how many global views to mask, from the first on; None for all.
    """

    def __init__(
        self,
        config: ViewConfig,
        masks: MaskConfig | None = None,
        grid=(14, 14),
        seed: int = 0,
        masked_views: int | None = None,
    ):
        self.config, self.masks, self.grid, self.seed = config, masks, grid, seed
        self.masked_views = len(config.global_blur) if masked_views is None else masked_views
        self.interpolation = InterpolationMode(config.interpolation)

    def __call__(self, image: Tensor, epoch: int, identity: int) -> dict[str, Tensor | None]:
        """
        Args:
            image: (3, H, W) uint8.
            epoch, identity: with the seed and the number of the view they key all randomness.
        """
        config, globals_, masks = self.config, [], []
        for view, (blur, solarize) in enumerate(zip(config.global_blur, config.global_solarize, strict=True)):
            generator = keyed_generator(self.seed, epoch, identity, view)
            pixels, crop = self._crop(image, config.global_size, config.global_scale, generator)
            globals_.append((pixels, draw_colour(config, blur, solarize, generator), crop))
            if self.masks and view < self.masked_views:
                masks.append(self._mask(generator))
        locals_ = []
        for view in range(len(globals_), len(globals_) + config.local_number):
            generator = keyed_generator(self.seed, epoch, identity, view)
            pixels, _ = self._crop(image, config.local_size, config.local_scale, generator)
            locals_.append((pixels, draw_colour(config, config.local_blur, 0.0, generator)))
        return {
            "global_pixels": torch.stack([pixels for pixels, _, _ in globals_]),
            "global_colours": torch.stack([colours for _, colours, _ in globals_]),
            "crops": torch.stack([crop for _, _, crop in globals_]),
            "masks": torch.stack(masks) if masks else None,
            "local_pixels": torch.stack([pixels for pixels, _ in locals_]) if locals_ else None,
            "local_colours": torch.stack([colours for _, colours in locals_]) if locals_ else None,
        }

    def _crop(self, image: Tensor, size: int, scale, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Crop, resize and perhaps mirror: the pixels, and (top, left, height, width, mirrored).

        Mirroring the crop is the same as mirroring the image first and cropping at the mirrored place.
        """
        top, left, height, width = random_crop(image.shape[-2:], scale, generator)
        pixels = resized_crop(image, top, left, height, width, [size, size], self.interpolation, antialias=True)
        mirrored = generator.random() < self.config.flip_probability
        return pixels.flip(-1) if mirrored else pixels, torch.tensor([top, left, height, width, mirrored], dtype=torch.float32)

    def _mask(self, generator: np.random.Generator) -> Tensor:
        ratio = draw_ratio(self.masks.ratios, self.masks.spreads, generator)
        return torch.from_numpy(MASKS[self.masks.shape](self.grid, ratio, generator))


def random_crop(size: tuple[int, int], scale, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width) of a crop: area U(scale), aspect ratio log-uniform in (3/4, 4/3).

    Ten attempts, then the largest central crop of an allowed ratio. The rule of torchvision's `RandomResizedCrop`.
    """
    rows, columns = size
    for _ in range(10):
        area = rows * columns * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= columns and 0 < height <= rows:
            return (
                int(generator.integers(rows - height + 1)),
                int(generator.integers(columns - width + 1)),
                height,
                width,
            )
    width, height = min(columns, round(rows * 4 / 3)), min(rows, round(columns * 4 / 3))
    return (rows - height) // 2, (columns - width) // 2, height, width


def keyed_generator(seed: int, epoch: int, identity: int, view: int) -> np.random.Generator:
    """A generator of its own for every (seed, epoch, image, view): nothing is shared, so nothing has to be restored."""
    return np.random.Generator(np.random.Philox(key=[identity, (seed << 32) + epoch], counter=[0, 0, 0, view]))


def identify(data: bytes) -> int:
    """A number that stands for an image: a checksum of its encoded bytes."""
    return zlib.crc32(data)


def collate(samples: list[dict]) -> Views:
    """Stack samples along the second axis, behind the axis of views."""

    def stack(name: str) -> Tensor | None:
        return None if samples[0][name] is None else torch.stack([sample[name] for sample in samples], dim=1)

    masks = stack("masks")
    return Views(
        **{name: stack(name) for name in ("global_pixels", "local_pixels", "global_colours", "local_colours", "crops")},
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
    Raises:
        CorruptShareError: while iterating, if more images than that cannot be decoded.
    """

    def __init__(self, images: ImageStream, augmentation: Augmentation, corrupt_share: float = 0.01):
        self.images, self.augmentation, self.corrupt_share = images, augmentation, corrupt_share
        self._read = self._corrupt = 0

    def state_dict(self) -> dict:
        return {"images": self.images.state_dict(), "read": self._read, "corrupt": self._corrupt}

    def load_state_dict(self, state: Mapping) -> None:
        self.images.load_state_dict(state["images"])
        self._read, self._corrupt = state["read"], state["corrupt"]

    def __iter__(self) -> Iterator[dict]:
        skipped: list[str] = []
        for encoded in self.images:
            self._read += 1
            try:
                image = decode(encoded.data)
            except CorruptImageError as error:
                self._corrupt += 1
                skipped.append(encoded.name)
                self._judge(encoded, error)
                continue
            sample = self.augmentation(image, encoded.epoch, identify(encoded.data))
            yield {**sample, "corrupt": skipped}
            skipped = []

    def _judge(self, encoded: EncodedImage, error: CorruptImageError) -> None:
        if self._read >= 100 and self._corrupt > self.corrupt_share * self._read:
            raise CorruptShareError(
                f"{self._corrupt} of {self._read} images cannot be decoded, more than data.corrupt_share={self.corrupt_share}; "
                f"the last one is {encoded.name!r}: {error}. Repair the data, or allow a larger share."
            ) from error
