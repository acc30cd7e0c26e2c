"""Encoded bytes -> an upright image, RGB or the bands of the file, or a clear error."""

import io
import warnings
from contextlib import contextmanager

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from hssl_hf.errors import UserError

EXIF_ORIENTATION = 0x0112
TIFF_SAMPLES = 277  # tag of the number of bands
T = Image.Transpose
TO_UPRIGHT = (T.FLIP_LEFT_RIGHT, T.ROTATE_180, T.FLIP_TOP_BOTTOM, T.TRANSPOSE, T.ROTATE_270, T.TRANSVERSE, T.ROTATE_90)
TRANSPOSITIONS = dict(enumerate(TO_UPRIGHT, start=2))  # by EXIF orientation
MAX_PIXELS = 2**27


class CorruptImageError(UserError):
    """An image that cannot be decoded."""


class LazyImage:
    """An encoded image, of which only the header has been read.

    Args:
        data: bytes of any format that Pillow reads.
        size: (H, W) upright.
    Raises:
        CorruptImageError: if the bytes are no image, or hold more than 2**27 pixels.
    """

    def __init__(self, data: bytes):
        self.data = data
        with _decoder_errors_as_corrupt():
            self.image = Image.open(io.BytesIO(data))
            if self.image.width * self.image.height > MAX_PIXELS:
                raise ValueError(f"{self.image.width}x{self.image.height} pixels are more than {MAX_PIXELS}")
            turned = self.image.format == "TIFF"  # by Pillow and OpenCV themselves
            self.orientation = 1 if turned else self.image.getexif().get(EXIF_ORIENTATION, 1)
        self.size = self.image.size if self.orientation in (5, 6, 7, 8) else self.image.size[::-1]

    def decode(self, excess: float = 1.0, channels: int = 3) -> Tensor:
        """Decode to 8 bits, upright.

        With three channels gray, palette, CMYK, 16-bit and transparent images become RGB (transparency is dropped, as
        `convert("RGB")` does). With another number nothing is converted: the file must have as many bands, which are returned
        as they are stored. Of 16 bits the upper 8 are kept.

        Args:
            excess: how many times larger than needed the image is. A JPEG of four times the size and more is decoded at a half,
                a quarter or an eighth of its size, which leaves twice what is needed.
            channels: C.
        Returns:
            (C, H, W) uint8.
        Raises:
            CorruptImageError: if the bytes are cut short or damaged, or the file has other bands.
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
            if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion clips instead of scaling
                image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
            image = image.convert(mode) if channels in (1, 3) else Image.fromarray(self._bands())
            if self.orientation in TRANSPOSITIONS:
                image = image.transpose(TRANSPOSITIONS[self.orientation])
            return torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1)

    def _require_bands(self, channels: int) -> None:
        """Raise a ValueError if the file has another number of bands, or bands of more than 16 bits."""
        mode, count = self.image.mode, len(self.image.getbands())
        if self.image.format == "TIFF":
            count = self.image.tag_v2.get(TIFF_SAMPLES, count)  # a fourth band without a meaning is no part of the mode
        if count != channels or mode.startswith("P"):
            kind = "a palette of colors" if mode.startswith("P") else f"{count} ({mode})"
            raise ValueError(
                f"expected images of {channels} bands, got one of {kind}; convert it, or set model.backbone_kwargs.in_chans to "
                "the bands of the images (3 converts all to RGB)"
            )
        if mode in ("I", "F"):
            raise ValueError(f"expected bands of 8 or 16 bits, got 32 bits (mode {mode}); scale the values to 16 bits")

    def _bands(self) -> np.ndarray:
        """(H, W, C) uint8 as stored; OpenCV reads the fourth band of a TIFF that Pillow leaves out."""
        if self.image.mode != "RGB":
            return np.asarray(self.image)
        blue_first = cv2.imdecode(np.frombuffer(self.data, np.uint8), cv2.IMREAD_UNCHANGED)
        if blue_first is None:
            raise ValueError("OpenCV cannot decode this TIFF")
        bands = blue_first[..., [2, 1, 0, 3]]
        return bands if bands.dtype == np.uint8 else (bands >> 8).astype(np.uint8)


def decode(data: bytes, channels: int = 3) -> Tensor:
    """`LazyImage(data).decode(channels=channels)`."""
    return LazyImage(data).decode(channels=channels)


@contextmanager
def _decoder_errors_as_corrupt():
    """Convert the errors of decoders to `CorruptImageError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large and of untidy files; both are checked here
            yield
    except (OSError, SyntaxError, RuntimeError, ValueError, cv2.error, Image.DecompressionBombError) as error:
        raise CorruptImageError(str(error)) from error
