"""Encoded bytes -> an upright RGB image, whatever the format, or a clear refusal."""

import io
import warnings

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

EXIF_ORIENTATION = 0x0112
ROTATIONS = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}
MAX_PIXELS = 2**27


class CorruptImageError(ValueError):
    """An image that cannot be decoded."""


def decode(data: bytes) -> Tensor:
    """Decode one image to RGB, upright.

    Grey, palette, CMYK, 16-bit and transparent images become 8-bit RGB (transparency is dropped, as `convert("RGB")` does).

    Args:
        data: bytes of any format that Pillow reads.
    Returns:
        (3, H, W) uint8.
    Raises:
        CorruptImageError: if the bytes are no image, are cut short, or hold more than 2**27 pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large and of untidy files; both are judged here
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > MAX_PIXELS:
                raise CorruptImageError(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS}")
            if image.format == "JPEG" and image.mode in ("RGB", "L"):
                encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
                return decode_jpeg(encoded, ImageReadMode.RGB, apply_exif_orientation=True)
            return _from_pillow(image)
    except (
        OSError,
        SyntaxError,
        RuntimeError,
        ValueError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
    ) as error:
        raise CorruptImageError(str(error)) from error


def _from_pillow(image: Image.Image) -> Tensor:
    orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion clips instead of scaling
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    image = image.convert("RGB")
    if orientation in (2, 4, 5, 7):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        orientation = {2: 1, 4: 3, 5: 8, 7: 6}[orientation]
    if orientation in ROTATIONS:
        image = image.transpose(ROTATIONS[orientation])
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
