"""One image -> the pixels of its crops, the color operations drawn for them, and masks.

Every random number of an image comes from counter-based generators keyed by (seed, epoch, image), where the image is known by
a checksum of its bytes: an image is treated alike in an epoch whatever the number of processes or workers. Crops are drawn
before the image is decoded, so that a photograph much larger than its crops need is decoded at a fraction of its size.
"""

import zlib
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from hssl_hf.data.channels import MAX_CHANNELS
from hssl_hf.data.color import ColorJitter, draw_colors
from hssl_hf.data.decode import LazyImage
from hssl_hf.data.masking import MASKS, draw_ratio
from hssl_hf.data.stream import EncodedImage
from hssl_hf.fields import Ascending, FieldError, Fraction, Length, Pixels, PositiveFraction, Range, Section

Scale = Annotated[tuple[PositiveFraction, PositiveFraction], Ascending()]
Sigma = Annotated[float, Range(above=0, most=32)]
Chances = Annotated[tuple[Fraction, ...], Length(1, 16)]  # one for each global view


@dataclass(frozen=True)
class ViewConfig(Section):
    """How an image becomes views. The defaults are those of DINO and iBOT; lists hold one value per global view.

    Args:
        global_crop_size, local_crop_size: side of the crops in pixels.
        global_crop_scale, local_crop_scale: range of the crop's fraction of the image's area.
        num_local_crops: local crops per image (L); 0 for none.
        clip_crops: cut crops that exceed the image to it, instead of drawing again, as the linear probes of BYOL and MAE do.
        interpolation: how crops are resized, with antialiasing.
        flip_probability: chance of a horizontal flip.
        jitter: strengths of brightness, contrast, saturation and hue, and the chance that they are applied.
        gray_probability: chance of a gray image.
        global_crop_blur, local_crop_blur: chance of a Gaussian blur.
        blur_sigma: range of its standard deviation in pixels.
        global_crop_solarize: chance of inverting all values from one half on.
        mean, std: normalization of each channel, on values in [0, 1]; as many values as channels (`views_for_channels`).
    Source: facts of DINO (arXiv 2104.14294) and iBOT (arXiv 2111.07832) code; crops of HSSL, Table 20.
    """

    global_crop_size: Pixels = 224
    global_crop_scale: Scale = (0.25, 1.0)
    num_local_crops: Annotated[int, Range(0, 64)] = 10
    local_crop_size: Pixels = 96
    local_crop_scale: Scale = (0.05, 0.25)
    clip_crops: bool = False
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    flip_probability: Fraction = 0.5
    jitter: ColorJitter = field(default_factory=ColorJitter)
    gray_probability: Fraction = 0.2
    global_crop_blur: Chances = (1.0, 0.1)
    local_crop_blur: Fraction = 0.5
    blur_sigma: Annotated[tuple[Sigma, Sigma], Ascending()] = (0.1, 2.0)
    global_crop_solarize: Chances = (0.0, 0.2)
    mean: Annotated[tuple[Fraction, ...], Length(1, MAX_CHANNELS)] = IMAGENET_DEFAULT_MEAN
    std: Annotated[tuple[Annotated[float, Range(0.001, 1)], ...], Length(1, MAX_CHANNELS)] = IMAGENET_DEFAULT_STD

    def __post_init__(self):
        super().__post_init__()
        if len(self.global_crop_blur) != len(self.global_crop_solarize):
            raise FieldError(
                f"global_crop_solarize: expected one chance per global view, {len(self.global_crop_blur)} as in "
                f"global_crop_blur, got {len(self.global_crop_solarize)}"
            )

    @property
    def num_channels(self) -> int:
        """Channels C of the images."""
        return len(self.mean)


@dataclass(frozen=True)
class MaskConfig(Section):
    """Which patches of the global views the student does not see.

    Args:
        shape: "block", "random", or "fixed_count_block" (equally many patches in every image, `masking.py`).
        ratios, ratio_jitter: a view takes one of the ratios with equal chance, widened to ratio ± spread.
    Source: iBOT, `pred_shape`, `pred_ratio`, `pred_ratio_var`; HSSL, Table 20.
    """

    shape: Literal["block", "fixed_count_block", "random"] = "block"
    ratios: Annotated[tuple[Fraction, ...], Length(1, 16)] = (0.0, 0.3)
    ratio_jitter: Annotated[tuple[Fraction, ...], Length(1, 16)] = (0.0, 0.2)

    def __post_init__(self):
        super().__post_init__()
        ratios, jitter = self.ratios, self.ratio_jitter
        if len(jitter) != len(ratios):
            raise FieldError(f"ratio_jitter: expected one value for each of the {len(ratios)} ratios, got {len(jitter)}")
        for ratio, spread in zip(ratios, jitter, strict=True):
            if not 0 <= ratio - spread <= ratio + spread <= 1:
                raise FieldError(f"ratio_jitter: expected {ratio} ± {spread} within 0 and 1; use a smaller jitter")

    @property
    def fixed_count(self) -> bool:
        """Whether every image has as many masked patches."""
        return self.shape != "block" and len(self.ratios) == 1 and not any(self.ratio_jitter)


class Draws(NamedTuple):
    """All random numbers of the views of one image.

    Args:
        size: (H, W) of the image that the crops refer to.
        crop_boxes: (V + L, 5) top, left, height, width in pixels, and 1 where flipped.
        color_ops: (V + L, 11) of `draw_colors`.
        masks: (V', h, w) bool, or None.
    """

    size: tuple[int, int]
    crop_boxes: np.ndarray
    color_ops: np.ndarray
    masks: np.ndarray | None


class Augmentation:
    """One image -> its views: crops on uint8, color operations drawn but not applied, masks.

    Args:
        config: the views.
        masks: how to mask the global views, None for not at all.
        grid: (h, w) patches of a global view; needed with masks.
        seed: seed of every draw.
        masked_views: how many global views to mask, from the first on; None for all.
    """

    def __init__(
        self, config: ViewConfig, masks: MaskConfig | None = None, grid=(14, 14), seed: int = 0, masked_views: int | None = None
    ):
        self.config, self.masks, self.grid, self.seed = config, masks, grid, seed
        self.num_global_crops = len(config.global_crop_blur)
        self.masked_views = 0 if masks is None else self.num_global_crops if masked_views is None else masked_views
        self.sizes = [config.global_crop_size] * self.num_global_crops + [config.local_crop_size] * config.num_local_crops
        self.blurs = np.array([*config.global_crop_blur, *[config.local_crop_blur] * config.num_local_crops])
        self.solarizes = np.array([*config.global_crop_solarize, *[0.0] * config.num_local_crops])

    def decode_and_augment(self, encoded: EncodedImage) -> dict:
        """A sample for `collate`.

        Raises:
            CorruptImageError: if the image cannot be decoded.
        """
        image = LazyImage(encoded.data)
        draws = self.draw(image.size, encoded.epoch, zlib.crc32(encoded.data))
        excess = min(crop[2:4].min() / size for crop, size in zip(draws.crop_boxes, self.sizes, strict=True))
        sample = self.cut(image.decode(excess, self.config.num_channels), draws)
        first_of_several = encoded.epoch == 0 and image.has_other_frames()  # counted once, in the first pass over the data
        return {**sample, "corrupt": [], "first_of_several": [encoded.name] if first_of_several else []}

    def __call__(self, image: Tensor, epoch: int, identity: int) -> dict[str, Tensor | None]:
        """The same for an image (C, H, W) uint8; epoch and identity, with the seed, key all randomness."""
        return self.cut(image, self.draw(tuple(image.shape[-2:]), epoch, identity))

    def draw(self, size: tuple[int, int], epoch: int, identity: int) -> Draws:
        """Draw the views of an image of `size` pixels; crops, color operations and masks do not depend on each other."""
        config = self.config
        crops, colors, masks = (keyed_generator(self.seed, epoch, identity, stream) for stream in range(3))
        global_boxes = random_crops(size, config.global_crop_scale, self.num_global_crops, crops, config.clip_crops)
        local_boxes = random_crops(size, config.local_crop_scale, config.num_local_crops, crops, config.clip_crops)
        flipped = crops.random((len(self.sizes), 1)) < config.flip_probability
        crop_boxes = np.hstack([np.vstack([global_boxes, local_boxes]), flipped]).astype(np.float32)
        color_ops = draw_colors(config, self.blurs, self.solarizes, colors)
        drawn_masks = [self._mask(masks) for _ in range(self.masked_views)]
        return Draws(size, crop_boxes, color_ops, np.stack(drawn_masks) if drawn_masks else None)

    def cut(self, image: Tensor, draws: Draws) -> dict[str, Tensor | None]:
        """Crop, resize and flip an image (C, H, W) uint8, which may be smaller than the size that was drawn for.

        Flipping a crop is the same as flipping the image first and cropping at the flipped position.
        """
        rows, columns = (side / drawn for side, drawn in zip(image.shape[-2:], draws.size, strict=True))
        boxes = (draws.crop_boxes[:, :4] * (rows, columns, rows, columns)).round().astype(int)
        flipped, color_ops = draws.crop_boxes[:, 4] > 0, torch.from_numpy(draws.color_ops)
        views = [self._view(image, *crop) for crop in zip(boxes, self.sizes, flipped, strict=True)]
        first = self.num_global_crops
        local = len(views) > first
        return {
            "pixel_values": torch.stack(views[:first]),
            "global_color_ops": color_ops[:first],
            "crop_boxes": torch.from_numpy(draws.crop_boxes[:first]),
            "bool_masked_pos": None if draws.masks is None else torch.from_numpy(draws.masks),
            "local_pixel_values": torch.stack(views[first:]) if local else None,
            "local_color_ops": color_ops[first:] if local else None,
        }

    def _view(self, image: Tensor, box: np.ndarray, size: int, flipped: bool) -> Tensor:
        """(size, size, C): both libraries are several times faster with channels last in memory, as decoders leave them."""
        top, left, height, width = box.tolist()
        region = image[None, :, top : top + max(1, height), left : left + max(1, width)].contiguous(
            memory_format=torch.channels_last
        )
        resized = F.interpolate(region, size=[size, size], mode=self.config.interpolation, antialias=True)
        pixels = resized[0].permute(1, 2, 0).contiguous()
        return torch.from_numpy(cv2.flip(pixels.numpy(), 1)).view_as(pixels) if flipped else pixels

    def _mask(self, generator: np.random.Generator) -> np.ndarray:
        ratio = draw_ratio(self.masks.ratios, self.masks.ratio_jitter, generator)
        return MASKS[self.masks.shape](self.grid, ratio, generator)


def random_crops(size: tuple[int, int], scale, count: int, generator: np.random.Generator, clip: bool = False) -> np.ndarray:
    """Draw (count, 4) crops (top, left, height, width): area U(scale), aspect ratio log-uniform in (3/4, 4/3).

    Ten attempts each, then the largest central crop of an allowed ratio. The rule of torchvision's `RandomResizedCrop`. With
    `clip` a side that exceeds the image is cut to it instead.
    """
    rows, columns = size
    areas = rows * columns * generator.uniform(*scale, (count, 10))
    aspects = np.exp(generator.uniform(*np.log((3 / 4, 4 / 3)), (count, 10)))
    widths, heights = np.rint(np.sqrt(areas * aspects)), np.rint(np.sqrt(areas / aspects))
    if clip:
        widths, heights = np.clip(widths, 1, columns), np.clip(heights, 1, rows)
    fits = (widths > 0) & (widths <= columns) & (heights > 0) & (heights <= rows)
    chosen = np.arange(count), fits.argmax(1)  # the first that fits
    fallback = min(rows, round(columns * 4 / 3)), min(columns, round(rows * 4 / 3))
    sizes = np.where(fits.any(1)[:, None], np.stack([heights[chosen], widths[chosen]], 1), fallback)
    corners = np.floor(generator.random((count, 2)) * (np.array(size) - sizes + 1))
    center = (np.array(size) - fallback) // 2
    return np.hstack([np.where(fits.any(1)[:, None], corners, center), sizes])


def keyed_generator(seed: int, epoch: int, identity: int, stream: int) -> np.random.Generator:
    """A separate generator for every (seed, epoch, image, stream), so that no random state has to be restored."""
    return np.random.Generator(np.random.Philox(key=[identity, (seed << 32) + epoch], counter=[0, 0, 0, stream]))
