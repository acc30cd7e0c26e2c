import io

import cv2
import datasets
import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

from hssl_hf.data.decode import CorruptImageError, LazyImage, decode
from tests.data.test_stream import png
from tests.faults import refused


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


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_turns_tiffs_upright_once(colors, orientation):
    data = encoded(colors, "TIFF", tiffinfo={0x0112: orientation})
    turns = {3: 2, 6: -1, 8: 1}[orientation]
    np.testing.assert_array_equal(decode(data).permute(1, 2, 0), np.rot90(np.asarray(colors), turns))
    assert LazyImage(data).size == tuple(decode(data).shape[1:])


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


def tiff_of_unspecified_band(bands: np.ndarray, orientation: int = 1) -> bytes:
    """RGB and a fourth band without a meaning, as GDAL writes it."""
    image = Image.frombytes("RGBX", bands.shape[1::-1], bands.tobytes())
    return encoded(image, "TIFF", tiffinfo={0x0112: orientation})


@pytest.fixture
def bands() -> np.ndarray:
    """(H, W, 4) of four unrelated bands."""
    return np.random.default_rng(0).integers(0, 256, (7, 9, 4), dtype=np.uint8)


def test_four_bands_are_decoded_as_they_are_stored(bands):
    """Alpha and black are bands like others: nothing is composed or converted."""
    images = [encoded(Image.fromarray(bands), form) for form in ("PNG", "TIFF")]
    images += [encoded(Image.frombytes("CMYK", (9, 7), bands.tobytes()), "TIFF"), tiff_of_unspecified_band(bands)]
    for data in images:
        np.testing.assert_array_equal(decode(data, 4).permute(1, 2, 0), bands)


def test_two_bands_are_decoded_as_they_are_stored(bands):
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(bands[..., :2]), "PNG"), 2).permute(1, 2, 0), bands[..., :2])


def test_bands_are_turned_upright(bands):
    exif = Image.Exif()
    exif[0x0112] = 6
    for data in (encoded(Image.fromarray(bands), "PNG", exif=exif), tiff_of_unspecified_band(bands, orientation=6)):
        np.testing.assert_array_equal(decode(data, 4).permute(1, 2, 0), np.rot90(bands, -1))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG", "BMP"])
def test_one_band_of_8_bits(form):
    array = np.full((5, 4), 77, np.uint8)
    array[:, 2:] = 78
    pixels = decode(encoded(Image.fromarray(array), form), 1)
    np.testing.assert_allclose(pixels.int(), array[None].astype(int), atol=form == "JPEG")


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_one_band_of_16_bits_keeps_the_upper_8(form):
    data = encoded(Image.fromarray(np.array([[0, 256, 65535, 32768]], np.uint16)), form)
    assert decode(data, 1).tolist() == [[[0, 1, 255, 128]]]


def test_one_band_of_1_bit_is_black_and_white():
    assert decode(encoded(Image.fromarray(np.array([[True, False]])), "PNG"), 1).tolist() == [[[255, 0]]]


@pytest.mark.parametrize("excess", [1.0, 8.1])
def test_gray_jpegs_are_decoded_to_one_band(excess):
    ramp = np.linspace(0, 255, 640).round().astype(np.uint8)
    image = LazyImage(encoded(Image.fromarray(np.broadcast_to(ramp, (480, 640)).copy()), "JPEG", quality=95))
    one = image.decode(excess, 1)
    assert torch.equal(one, image.decode(excess)[:1])


def test_arrays_in_a_dataset_keep_their_bands(bands, tmp_path):
    """`datasets` encodes arrays of one, two and four channels as images of as many bands."""
    from hssl_hf.data.image_cells import image_bytes
    from hssl_hf.data.source import Source, load_source

    for array, channels in ((bands[..., 0], 1), (bands, 4), (bands[..., 0].astype(np.uint16) << 8, 1)):
        features = datasets.Features({"image": datasets.Image()})
        datasets.Dataset.from_dict({"image": [array]}, features).to_parquet(tmp_path / "train.parquet")
        source = Source(str(tmp_path / "train.parquet"))
        (row,) = load_source(source)
        expected = array >> 8 if array.dtype == np.uint16 else array
        np.testing.assert_array_equal(
            decode(image_bytes(row["image"], source), channels), np.atleast_3d(expected).transpose(2, 0, 1)
        )


@pytest.mark.parametrize(
    ("mode", "form", "channels", "actual"),
    [
        ("RGB", "PNG", 1, r"3 \(RGB\)"),
        ("RGB", "JPEG", 4, r"3 \(RGB\)"),
        ("RGBA", "PNG", 1, r"4 \(RGBA\)"),
        ("LA", "PNG", 1, r"2 \(LA\)"),
        ("P", "PNG", 1, "a palette of colors"),
        ("L", "PNG", 4, r"1 \(L\)"),
        ("L", "JPEG", 2, r"1 \(L\)"),
    ],
)
def test_other_numbers_of_bands_are_refused(colors, mode, form, channels, actual):
    with pytest.raises(
        CorruptImageError, match=rf"expected images of {channels} bands, got one of {actual}; convert it, or set"
    ):
        decode(encoded(colors.convert(mode), form), channels)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_bands_of_32_bits_are_refused(mode):
    with pytest.raises(CorruptImageError, match="expected bands of 8 or 16 bits, got 32 bits"):
        decode(encoded(Image.new(mode, (4, 4)), "TIFF"), 1)


@pytest.mark.parametrize("cut", [100, 200])
def test_broken_files_of_four_bands_are_corrupt(bands, cut):
    for data in (encoded(Image.fromarray(bands), "PNG"), tiff_of_unspecified_band(bands)):
        with pytest.raises(CorruptImageError):
            decode(data[:cut], 4)


def tiff(values: np.ndarray, **tags) -> bytes:
    return encoded(Image.fromarray(values), "TIFF", tiffinfo={int(tag[1:]): value for tag, value in tags.items()})


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("values", "tags", "expected"),
    [
        ([0, 2048, 4095], {}, [0, 127, 255]),  # 12 bits in 16
        ([0, 300, 900], {}, [0, 18, 56]),  # a dark image of the same camera
        ([0, 4096, 65535], {}, [0, 16, 255]),
        ([0, 512, 1023], {"_281": 1023}, [0, 127, 255]),  # MaxSampleValue
        ([0, 300, 900], {"_281": 65535}, [0, 1, 3]),
        ([0, 0, 0], {}, [0, 0, 0]),
        ([0, 2048, 4095], {"_262": 0}, [255, 128, 0]),  # white is zero
    ],
)
def test_gray_tiffs_of_16_bits_are_scaled_by_their_range(values, tags, expected, channels):
    pixels = decode(tiff(np.array([values], np.uint16), **tags), channels)
    assert pixels.shape == (channels, 1, 3) and (pixels == torch.tensor(expected)).all()


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("largest", [4095, 65535])
def test_color_tiffs_of_16_bits_are_scaled_by_their_range(largest, channels):
    """As microscopes and cameras write them; Pillow alone keeps the upper 8 of 16 bits, which leaves 12 bits black."""
    values = np.linspace(0, largest, 5 * 7 * channels).reshape(5, 7, channels).astype(np.uint16)
    _, data = cv2.imencode(".tiff", values[..., [2, 1, 0, 3][:channels]])
    expected = values.astype(np.uint32) * 255 // largest if largest < 65535 else values >> 8
    np.testing.assert_array_equal(decode(data.tobytes(), channels).permute(1, 2, 0), expected)


def test_pngs_of_16_bits_use_their_full_range_as_the_format_demands():
    assert decode(encoded(Image.fromarray(np.array([[0, 300, 4095]], np.uint16)), "PNG"))[0].tolist() == [[0, 1, 15]]


def test_pnms_are_scaled_by_the_range_that_they_declare():
    data = b"P5 3 1 4095\n" + np.array([0, 2048, 4095], ">u2").tobytes()
    for channels in (1, 3):
        assert (decode(data, channels) == torch.tensor([0, 128, 255])).all()


PAGES = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (10, 120, 240)]


def tiff_pages(*kinds: int) -> bytes:
    """A TIFF of a page and further ones, each with its NewSubfileType."""
    buffer = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(buffer, new=True) as writer:
        for page, kind in zip(PAGES, (0, *kinds), strict=False):
            page.save(writer, "TIFF", tiffinfo={254: kind})
            writer.newFrame()
    return buffer.getvalue()


SEVERAL = {
    "TIFF stack": encoded(PAGES[0], "TIFF", save_all=True, append_images=PAGES[1:]),
    "compressed TIFF": encoded(PAGES[0], "TIFF", save_all=True, append_images=PAGES[1:], compression="tiff_lzw"),
    "copy, then a page": tiff_pages(1, 0),
    "animated GIF": encoded(PAGES[0], "GIF", save_all=True, append_images=PAGES[1:]),
    "animated WebP": encoded(PAGES[0], "WEBP", save_all=True, append_images=PAGES[1:], lossless=True),
    "APNG": encoded(PAGES[0], "PNG", save_all=True, append_images=PAGES[1:]),
    "AVIF sequence": encoded(PAGES[0], "AVIF", save_all=True, append_images=PAGES[1:]),
    "multi-picture JPEG": encoded(PAGES[0], "MPO", save_all=True, append_images=PAGES[1:]),
}
ONE = {
    **{form: encoded(PAGES[0], form) for form in ("TIFF", "GIF", "WEBP", "PNG", "AVIF", "JPEG", "BMP", "PPM", "JPEG2000")},
    "reduced copies": tiff_pages(1, 1),
    "mask": tiff_pages(4),
    "JPEG with a preview": encoded(PAGES[0], "MPO", save_all=True, append_images=[PAGES[0].resize((4, 4))]),
    "APNG of one frame": encoded(PAGES[0], "PNG", save_all=True),
    "damaged second page": tiff_pages(0)[:400],
    "damaged second frame": SEVERAL["animated GIF"][: len(encoded(PAGES[0], "GIF")) + 5],
}


@pytest.mark.fault("files with several images")
@pytest.mark.parametrize("name", [*SEVERAL, *ONE])
def test_files_with_several_images_are_known_and_the_first_is_read(name):
    data = {**SEVERAL, **ONE}[name]
    before, after = LazyImage(data), LazyImage(data)
    assert before.has_other_frames() == (name in SEVERAL)
    for image in (before, after):  # whatever comes first
        assert (image.decode().float() - 10).abs().max() <= 4
    assert after.has_other_frames() == (name in SEVERAL)


@pytest.mark.fault("images")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "values",
    [np.float32([[0.1, 0.9]]), np.float32([[0, 1e9]]), np.int32([[0, 70000]]), np.float32([[np.nan, 1]])],
    ids=["unit", "large", "integers", "nan"],
)
def test_tiffs_of_32_bits_are_refused(values, channels):
    with refused("32 bits", "scale the values"):
        decode(encoded(Image.fromarray(values), "TIFF"), channels)


@pytest.mark.fault("images")
@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"%PDF-1.7\n",
        b"<svg/>",
        b"\0\0\0\x18ftypheic",
        b"II*\0\xff\xff\xff\xff",
        *(encoded(Image.new("RGB", (4, 4)), form) for form in ("TGA", "ICO", "PCX", "EPS", "SGI", "PDF")),
    ],
    ids=["ps", "pdf", "svg", "heic", "damaged tiff", "TGA", "ICO", "PCX", "EPS", "SGI", "PDF"],
)
def test_other_formats_are_refused_whatever_they_are_called(data, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)  # Ghostscript would be started
    monkeypatch.setattr("subprocess.check_call", None)
    with refused("not an image of a format that can be read", "PNG"):
        decode(data)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bits", [8, 16])
def test_tiffs_of_every_orientation_are_upright_once(orientation, bits):
    from PIL import ImageOps

    values = np.random.default_rng(0).integers(0, 2**bits, (5, 7)).astype(f"uint{bits}")
    values[0, 0] = 2**bits - 1
    plain = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(plain, "PNG", exif=exif))))
    data = tiff(values, _274=orientation)
    np.testing.assert_array_equal(decode(data)[0], expected)
    assert LazyImage(data).size == tuple(decode(data).shape[1:])
