"""Encoded bytes -> an upright image, RGB or the bands of the file, or a clear error."""

import io
import struct
import warnings
import zlib
from contextlib import contextmanager
from itertools import count
from typing import BinaryIO

import cv2
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from hssl_hf.errors import UserError

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # raster only: no decoder runs a program
SUFFIXES = frozenset(suffix for suffix, form in Image.registered_extensions().items() if form in FORMATS)
EXIF_ORIENTATION = 0x0112
TIFF_KIND, TIFF_COPY = 254, 1 | 4  # tag, and its bits for a reduced copy and for a mask of another page
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_SAMPLES, TIFF_MAXIMUM = 258, 262, 277, (281, 341)  # tags; a maximum for integers, for all
TWELVE_BITS, SIXTEEN_BITS = 2**12 - 1, 2**16 - 1
T = Image.Transpose
TO_UPRIGHT = (T.FLIP_LEFT_RIGHT, T.ROTATE_180, T.FLIP_TOP_BOTTOM, T.TRANSPOSE, T.ROTATE_270, T.TRANSVERSE, T.ROTATE_90)
TRANSPOSITIONS = dict(enumerate(TO_UPRIGHT, start=2))  # by EXIF orientation
MAX_PIXELS = 2**27
DECODER_ERRORS = (OSError, SyntaxError, RuntimeError, ValueError, LookupError, TypeError, EOFError, ArithmeticError)
DECODER_ERRORS += (struct.error, zlib.error, cv2.error, Image.DecompressionBombError)


class CorruptImageError(UserError):
    """An image that cannot be decoded."""


class LazyImage:
    """An encoded image, of which only the header has been read; of a file with several, the first.

    Args:
        data: bytes of one of `FORMATS`.
        size: (H, W) upright.
    Raises:
        CorruptImageError: if the bytes are no image of these formats, or hold more than 2**27 pixels.
    """

    def __init__(self, data: bytes):
        self.data = data
        if not data:
            raise CorruptImageError("there are no bytes: the file is missing, empty or damaged")
        with _decoder_errors_as_corrupt():
            self.image = Image.open(io.BytesIO(data), formats=FORMATS)
            if self.image.width * self.image.height > MAX_PIXELS:
                raise ValueError(f"{self.image.width}x{self.image.height} pixels are more than {MAX_PIXELS}")
            self.is_tiff = self.image.format == "TIFF"
            turned = self.is_tiff  # by Pillow and OpenCV themselves
            self.orientation = 1 if turned else self.image.getexif().get(EXIF_ORIENTATION, 1)
        self.size = self.image.size if self.orientation in (5, 6, 7, 8) else self.image.size[::-1]

    def has_other_frames(self) -> bool:
        """Whether the file holds images behind the first: frames of an animation, pages, slices of a stack.

        Reduced copies and masks, declared as such in TIFF files, and images of another size in multi-picture JPEG files, such
        as previews and gain maps, are none, and neither is what is damaged.
        """
        try:
            with _decoder_errors_as_corrupt():
                return getattr(self.image, "is_animated", False) and self._has_frames_of_its_own()
        except CorruptImageError:
            return False

    def _has_frames_of_its_own(self) -> bool:
        if self.image.format not in ("TIFF", "MPO"):
            return True
        with Image.open(io.BytesIO(self.data), formats=FORMATS) as frames:  # `decode` needs its own at the first
            size = frames.size
            for number in count(1):
                frames.seek(number)
                is_copy = frames.tag_v2.get(TIFF_KIND, 0) & TIFF_COPY if self.is_tiff else frames.size != size
                if not is_copy:
                    return True

    def decode(self, excess: float = 1.0, channels: int = 3) -> Tensor:
        """Decode to 8 bits, upright.

        With three channels gray, palette, CMYK, 16-bit and transparent images become RGB (transparency is dropped, as
        `convert("RGB")` does). With another number nothing is converted: the file must have as many bands, which are returned
        as they are stored.

        Of 16 bits the upper 8 are kept. TIFF files store smaller ranges in 16 bits too: they are scaled from the largest value
        that the file declares (MaxSampleValue, or 12 BitsPerSample), and otherwise from 12 bits if no value needs more.
        Values of 32 bits, whose range no format defines, are refused.

        Args:
            excess: how many times larger than needed the image is. A JPEG of four times the size and more is decoded at a half,
                a quarter or an eighth of its size, which leaves twice what is needed.
            channels: C.
        Returns:
            (C, H, W) uint8.
        Raises:
            CorruptImageError: if the bytes are cut short or damaged, or the file has other bands or values of 32 bits.
        """
        mode = "L" if channels == 1 else "RGB"
        with _decoder_errors_as_corrupt():
            if channels != 3:
                self._require_bands(channels)
            if self.image.format == "JPEG" and self.image.mode in ("RGB", "L"):
                reduction = max(r for r in (1, 2, 4, 8) if r == 1 or 2 * r <= excess)
                if reduction == 1:
                    encoded = torch.frombuffer(bytearray(self.data), dtype=torch.uint8)
                    read_mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
                    return decode_jpeg(encoded, read_mode, apply_exif_orientation=True)
                self.image.draft(mode, tuple(-(-side // reduction) for side in self.image.size))
            image = self.image
            if (samples := self._samples(channels)) is not None:
                image = Image.fromarray(samples if samples.dtype == np.uint8 else self._to_8_bits(samples))
            if channels in (1, 3):
                image = image.convert(mode)
            if self.orientation in TRANSPOSITIONS:
                image = image.transpose(TRANSPOSITIONS[self.orientation])
            return torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1)

    def _require_bands(self, channels: int) -> None:
        """Raise a ValueError if the file has another number of bands."""
        mode, bands = self.image.mode, len(self.image.getbands())
        if self.is_tiff:
            bands = self.image.tag_v2.get(TIFF_SAMPLES, bands)  # a fourth band without a meaning is no part of the mode
        if bands != channels or mode.startswith("P"):
            kind = "a palette of colors" if mode.startswith("P") else f"{bands} ({mode})"
            raise ValueError(
                f"expected images of {channels} bands, got one of {kind}; convert it, or set model.backbone_kwargs.in_chans to "
                "the bands of the images (3 converts all to RGB)"
            )

    def _samples(self, channels: int) -> np.ndarray | None:
        """(H, W) or (H, W, C) uint8 or uint16 as stored, where Pillow's image is not it; None where it is."""
        mode = self.image.mode
        if mode == "I" and self.image.format == "PPM":  # which Pillow scales to 16 bits
            return np.asarray(self.image).astype(np.uint16)
        if mode in ("I", "F"):
            raise ValueError(f"expected bands of 8 or 16 bits, got 32 bits (mode {mode}); scale the values to 16 bits")
        if mode.startswith("I"):
            return np.asarray(self.image).astype(np.uint16)
        deep = self.is_tiff and max(self.image.tag_v2.get(TIFF_BITS, (8,))) > 8  # which Pillow reduces to the upper 8
        if mode in ("RGB", "RGBA") and (deep or (channels == 4 and mode == "RGB")):
            blue_first = cv2.imdecode(np.frombuffer(self.data, np.uint8), cv2.IMREAD_UNCHANGED)
            if blue_first is None:
                raise ValueError("OpenCV cannot decode this TIFF")
            return blue_first[..., [2, 1, 0, 3][: blue_first.shape[-1]]]
        return None

    def _to_8_bits(self, samples: np.ndarray) -> np.ndarray:
        """Scale 16 bits by the range that the format, the file or its values define."""
        largest, tags = SIXTEEN_BITS, self.image.tag_v2 if self.is_tiff else {}
        if self.is_tiff and samples.max() <= TWELVE_BITS:
            largest = TWELVE_BITS
        declared = [np.max(tags[tag]) for tag in TIFF_MAXIMUM if tag in tags]
        if declared and 0 < declared[0] <= SIXTEEN_BITS:
            largest = max(int(declared[0]), int(samples.max()))
        wide = samples.astype(np.uint32)
        scaled = (wide >> 8 if largest == SIXTEEN_BITS else wide * 255 // largest).astype(np.uint8)
        white_is_zero = samples.ndim == 2 and tags.get(TIFF_PHOTOMETRIC) == 0
        return 255 - scaled if white_is_zero else scaled


def decode(data: bytes, channels: int = 3) -> Tensor:
    """`LazyImage(data).decode(channels=channels)`."""
    return LazyImage(data).decode(channels=channels)


def is_image(file: str | BinaryIO) -> bool:
    """Whether a file, or its path, begins as an image of one of `FORMATS`."""
    try:
        with _decoder_errors_as_corrupt(), Image.open(file, formats=FORMATS):
            return True
    except CorruptImageError:
        return False


@contextmanager
def _decoder_errors_as_corrupt():
    """Convert the errors of decoders to `CorruptImageError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large and of untidy files; both are checked here
            yield
    except UnidentifiedImageError as error:
        raise CorruptImageError(
            f"this is not an image of a format that can be read ({', '.join(FORMATS)}; TIFF of integers of 8 or 16 bits)"
        ) from error
    except DECODER_ERRORS as error:
        raise CorruptImageError(str(error) or type(error).__name__) from error
