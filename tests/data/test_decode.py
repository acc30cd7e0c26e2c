import io

import numpy as np
import pytest
from PIL import Image

from hssl_hf.data.decode import CorruptImageError, LazyImage, decode
from tests.data.test_stream import png


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture
def colors() -> Image.Image:
    """Left half red, right half blue, upper quarter green."""
    array = np.zeros((32, 48, 3), np.uint8)
    array[:, :24, 0] = array[:, 24:, 2] = 200
    array[:8] = (0, 200, 0)
    return Image.fromarray(array)


@pytest.mark.parametrize(
    ("form", "mode"),
    [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("GIF", "P")],
)
def test_decodes_every_mode_to_the_same_colors(colors, form, mode):
    pixels = decode(encoded(colors.convert(mode), form)).int()
    assert pixels.shape == (3, 32, 48)
    for (row, column), expected in (((20, 8), (200, 0, 0)), ((20, 40), (0, 0, 200)), ((3, 24), (0, 200, 0))):
        np.testing.assert_allclose(pixels[:, row, column], expected, atol=12)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_decodes_gray_images(form):
    pixels = decode(encoded(Image.fromarray(np.full((5, 4), 77, np.uint8)), form))
    assert pixels.shape == (3, 5, 4) and (pixels == 77).all()


def test_decodes_16_bits_by_scaling():
    pixels = decode(encoded(Image.fromarray(np.array([[0, 256, 65535, 32768]], np.uint16)), "PNG"))
    assert pixels[0, 0].tolist() == [0, 1, 255, 128]


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turns_images_upright(colors, form, orientation):
    """As Pillow's own `exif_transpose` does."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(colors, form, exif=exif)
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))).transpose(2, 0, 1)
    np.testing.assert_allclose(decode(data).int(), expected.astype(int), atol=12)


@pytest.mark.parametrize("data", [b"", b"no image", png(3)[:40], encoded(Image.new("RGB", (64, 64)), "JPEG")[:300]])
def test_broken_bytes_are_corrupt(data):
    with pytest.raises(CorruptImageError):
        decode(data)


def test_bombs_are_refused_before_they_are_decoded():
    bomb = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    with pytest.raises(CorruptImageError, match="pixels"):
        decode(bomb)


@pytest.mark.parametrize(("excess", "divisor"), [(1.0, 1), (3.9, 1), (4.0, 2), (8.1, 4), (40.0, 8)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_large_jpegs_are_decoded_at_a_fraction(excess, divisor, orientation):
    ramp = np.linspace(0, 255, 640).round().astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.stack([np.broadcast_to(ramp, (480, 640))] * 3, -1)), "JPEG", quality=95, exif=exif)
    image = LazyImage(data)
    assert image.size == ((480, 640) if orientation == 1 else (640, 480))
    pixels = image.decode(excess)
    assert pixels.shape == (3, image.size[0] // divisor, image.size[1] // divisor)
    line = pixels[0, 5] if orientation == 1 else pixels[0, :, 5]
    np.testing.assert_allclose(line.float(), ramp.reshape(-1, divisor).mean(1), atol=2.5)


def test_other_formats_are_decoded_at_full_size():
    assert LazyImage(png(3, 40)).decode(excess=100).shape == (3, 40, 40)
