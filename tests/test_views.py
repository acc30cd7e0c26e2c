import io
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from hssl_hf.decode import CorruptImageError, decode
from hssl_hf.positions import relative_coordinates, relative_geometry
from hssl_hf.stream import EncodedImage, ImageStream, Source
from hssl_hf.views import (
    Augmentation,
    CorruptShareError,
    MaskConfig,
    ViewConfig,
    ViewStream,
    collate,
    keyed_generator,
    random_crop,
)
from tests.test_stream import png, write_parquet

SMALL = ViewConfig(global_size=28, local_size=14, local_number=2)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture
def colours() -> Image.Image:
    """Left half red, right half blue, upper quarter green."""
    array = np.zeros((32, 48, 3), np.uint8)
    array[:, :24, 0] = array[:, 24:, 2] = 200
    array[:8] = (0, 200, 0)
    return Image.fromarray(array)


@pytest.mark.parametrize(
    ("form", "mode"),
    [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("GIF", "P")],
)
def test_decodes_every_mode_to_the_same_colours(colours, form, mode):
    pixels = decode(encoded(colours.convert(mode), form)).int()
    assert pixels.shape == (3, 32, 48)
    for place, expected in (((20, 8), (200, 0, 0)), ((20, 40), (0, 0, 200)), ((3, 24), (0, 200, 0))):
        np.testing.assert_allclose(pixels[:, place[0], place[1]], expected, atol=12)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_decodes_grey_images(form):
    pixels = decode(encoded(Image.fromarray(np.full((5, 4), 77, np.uint8)), form))
    assert pixels.shape == (3, 5, 4) and (pixels == 77).all()


def test_decodes_16_bits_by_scaling():
    pixels = decode(encoded(Image.fromarray(np.array([[0, 256, 65535, 32768]], np.uint16)), "PNG"))
    assert pixels[0, 0].tolist() == [0, 1, 255, 128]


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turns_images_upright(colours, form, orientation):
    """As Pillow's own `exif_transpose` does."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(colours, form, exif=exif)
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


def test_views_depend_on_seed_epoch_image_and_view_alone():
    image, other = decode(png(7, 40)), torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    augmentation = Augmentation(SMALL, MaskConfig(), grid=(4, 4), seed=1)
    first = augmentation(other, epoch=2, identity=99)
    augmentation(image, epoch=0, identity=5)
    torch.rand(3)
    again = augmentation(other, epoch=2, identity=99)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for change in ({"epoch": 3, "identity": 99}, {"epoch": 2, "identity": 98}):
        assert not torch.equal(first["global_pixels"], augmentation(other, **change)["global_pixels"])
    seeded = Augmentation(SMALL, MaskConfig(), grid=(4, 4), seed=2)(other, epoch=2, identity=99)
    assert not torch.equal(first["global_pixels"], seeded["global_pixels"])
    assert not torch.equal(first["global_colours"][0], first["global_colours"][1])


def test_views_of_one_image_have_randomness_of_their_own():
    same = ViewConfig(global_size=28, local_number=0, global_blur=(0.5, 0.5), global_solarize=(0.5, 0.5))
    sample = Augmentation(same, MaskConfig(ratios=(0.4,), spreads=(0.0,)), grid=(7, 7))(decode(png(7, 40)), 0, 1)
    for name in ("global_colours", "masks"):
        assert not torch.equal(*sample[name]), name


def test_shapes_and_types():
    sample = Augmentation(SMALL, MaskConfig(), grid=(4, 4))(torch.zeros(3, 40, 30, dtype=torch.uint8), 0, 0)
    views = collate([{**sample, "corrupt": ["x"]}, {**sample, "corrupt": []}])
    assert views.global_pixels.shape == (2, 2, 3, 28, 28) and views.global_pixels.dtype == torch.uint8
    assert views.local_pixels.shape == (2, 2, 3, 14, 14) and views.masks.shape == (2, 2, 4, 4)
    assert torch.equal(views.masked_indices, views.masks.flatten().nonzero().flatten())
    assert views.corrupt == ("x",)
    coloured = views.coloured(SMALL)
    assert coloured.global_pixels.dtype == torch.float32 and coloured.global_colours is None


def test_crops_have_torchvisions_distribution():
    torch.manual_seed(0)
    ours = np.array([random_crop((375, 500), (0.25, 1.0), keyed_generator(0, 0, i, 0)) for i in range(6000)], float)
    image = torch.empty(3, 375, 500)
    theirs = np.array(
        [
            [p[k] for k in ("top", "left", "height", "width")]
            for p in (v2.RandomResizedCrop(224, (0.25, 1.0)).make_params([image]) for _ in range(6000))
        ],
        float,
    )
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), rtol=0.04)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.04)
    assert np.corrcoef(ours[:, 2], ours[:, 3])[0, 1] == pytest.approx(np.corrcoef(theirs[:, 2], theirs[:, 3])[0, 1], abs=0.04)


def test_crops_lie_inside_even_thin_images():
    for index, size in enumerate([(3, 400), (400, 3), (1, 1), (50, 40)] * 50):
        top, left, height, width = random_crop(size, (0.05, 0.25), keyed_generator(0, 0, index, 0))
        assert 0 <= top <= size[0] - height and 0 <= left <= size[1] - width and height > 0 and width > 0


def test_half_of_the_views_are_flipped():
    ramp = torch.arange(64, dtype=torch.uint8).expand(3, 64, 64)
    augmentation = Augmentation(ViewConfig(global_size=16, local_number=0))
    flipped = [
        bool(pixels[0, 0, 0] > pixels[0, 0, -1])
        for identity in range(400)
        for pixels in augmentation(ramp, 0, identity)["global_pixels"]
    ]
    assert np.mean(flipped) == pytest.approx(0.5, abs=0.05)


def test_crops_say_where_every_pixel_comes_from():
    """An image whose pixels hold their own row and column, against the geometry that comes with its views, mirrored or not."""
    rows, columns = torch.meshgrid(torch.arange(120), torch.arange(200), indexing="ij")
    image = torch.stack([rows, columns, rows]).to(torch.uint8)
    augmentation = Augmentation(ViewConfig(global_size=16, local_number=0, global_scale=(0.2, 0.6)))
    mirrored = 0
    for identity in range(60):
        sample = augmentation(image, 0, identity)
        for view in range(2):
            y, x = relative_coordinates(
                relative_geometry(torch.tensor([0.0, 0.0, 120.0, 200.0, 0.0]), sample["crops"][view]), (16, 16)
            )
            y, x = (y + 0.5) * 120 / 16 - 0.5, (x + 0.5) * 200 / 16 - 0.5  # patches of the whole image -> pixels
            pixels = sample["global_pixels"][view].float()
            torch.testing.assert_close(pixels[0, :, 8][2:14], y[2:14], atol=1.0, rtol=0)
            torch.testing.assert_close(pixels[1, 8][2:14], x[2:14], atol=1.0, rtol=0)
            mirrored += int(sample["crops"][view, 4])
    assert 40 < mirrored < 80


def test_only_the_views_asked_for_are_masked():
    image, masks = decode(png(7, 40)), MaskConfig(shape="counted_block", ratios=(0.6,), spreads=(0.0,))
    samples = [Augmentation(SMALL, masks, (4, 4), masked_views=count)(image, 0, 1) for count in (0, 1, None)]
    assert samples[0]["masks"] is None
    assert samples[1]["masks"].shape == (1, 4, 4) and samples[1]["masks"].sum() == 10
    assert torch.equal(samples[2]["masks"][0], samples[1]["masks"][0]) and samples[2]["masks"].shape == (2, 4, 4)
    assert all(torch.equal(samples[0][name], samples[2][name]) for name in ("global_pixels", "crops", "local_pixels"))
    views = collate([{**samples[1], "corrupt": []}] * 3)
    assert views.masked_indices.view(3, 10).remainder(16).unique().numel() == 10 and views.crops.shape == (2, 3, 5)
    assert set(views.tensors()) >= {"global_pixels", "masks", "masked_indices", "crops"} and "corrupt" not in views.tensors()


def test_unequal_lists_of_views_are_refused():
    with pytest.raises(ValueError, match=r"one chance per global view, got 1 .* and 2"):
        ViewConfig(global_blur=(1.0,))


class Endless:
    """A stream in which every n-th image is broken."""

    def __init__(self, broken: int):
        self.broken = broken

    def __iter__(self):
        for i in range(10_000):
            yield EncodedImage(b"broken" if i % self.broken == self.broken - 1 else png(i), f"image {i}", 0)

    def state_dict(self):
        return {}


def test_corrupt_images_are_skipped_and_named():
    stream = ViewStream(Endless(5), Augmentation(SMALL), corrupt_share=0.5)
    samples = list(islice(stream, 10))
    assert [name for sample in samples for name in sample["corrupt"]] == ["image 4", "image 9"]
    assert stream.state_dict() == {"images": {}, "read": 12, "corrupt": 2}


def test_too_many_corrupt_images_stop_the_stream_with_a_name():
    with pytest.raises(CorruptShareError, match=r"20 of 100 .* data.corrupt_share=0.1.*'image 99'"):
        list(islice(ViewStream(Endless(5), Augmentation(SMALL), corrupt_share=0.1), 500))


def test_same_image_same_views_whatever_the_number_of_readers(tmp_path):
    source = Source(str(write_parquet(tmp_path, images=40, shards=4)))

    def views(rank, world_size, count):
        arguments = {"rank": rank, "world_size": world_size, "window": 16}
        names = [image.name for image in islice(ImageStream(source, **arguments), count)]
        samples = islice(ViewStream(ImageStream(source, **arguments), Augmentation(SMALL)), count)
        return {name: sample["global_pixels"] for name, sample in zip(names, samples, strict=True)}

    alone, second = views(0, 1, 40), views(1, 2, 20)
    assert len(second) == 20 and all(torch.equal(alone[name], pixels) for name, pixels in second.items())
