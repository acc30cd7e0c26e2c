"""Encoded bytes -> an upright RGB image, or a clear error."""

import io
import warnings
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from hssl_hf.errors import UserError

EXIF_ORIENTATION = 0x0112
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
            self.orientation = self.image.getexif().get(EXIF_ORIENTATION, 1)
        self.size = self.image.size if self.orientation in (5, 6, 7, 8) else self.image.size[::-1]

    def decode(self, excess: float = 1.0) -> Tensor:
        """Decode to RGB, upright.

        Gray, palette, CMYK, 16-bit and transparent images become 8-bit RGB (transparency is dropped, as `convert("RGB")` does).

        Args:
            excess: how many times larger than needed the image is. A JPEG of four times the size and more is decoded at a half,
                a quarter or an eighth of its size, which leaves twice what is needed.
        Returns:
            (3, H, W) uint8.
        Raises:
            CorruptImageError: if the bytes are cut short or damaged.
        """
        with _decoder_errors_as_corrupt():
            if self.image.format == "JPEG" and self.image.mode in ("RGB", "L"):
                reduction = max(r for r in (1, 2, 4, 8) if r == 1 or 2 * r <= excess)
                if reduction == 1:
                    encoded = torch.frombuffer(bytearray(self.data), dtype=torch.uint8)
                    return decode_jpeg(encoded, ImageReadMode.RGB, apply_exif_orientation=True)
                self.image.draft("RGB", tuple(-(-side // reduction) for side in self.image.size))
            image = self.image
            if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion clips instead of scaling
                image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
            image = image.convert("RGB")
            if self.orientation in TRANSPOSITIONS:
                image = image.transpose(TRANSPOSITIONS[self.orientation])
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def decode(data: bytes) -> Tensor:
    """`LazyImage(data).decode()`."""
    return LazyImage(data).decode()


@contextmanager
def _decoder_errors_as_corrupt():
    """Convert the errors of decoders to `CorruptImageError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large and of untidy files; both are checked here
            yield
    except (OSError, SyntaxError, RuntimeError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptImageError(str(error)) from error
