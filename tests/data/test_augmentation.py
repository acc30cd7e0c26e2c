import io
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from hssl_hf.data.augmentation import Augmentation, MaskConfig, ViewConfig, keyed_generator, random_crops
from hssl_hf.data.decode import decode
from hssl_hf.data.stream import EncodedImage
from hssl_hf.data.views import collate
from hssl_hf.modules.position_embeddings import relative_coordinates, relative_geometry
from tests.data.test_stream import png

SMALL = ViewConfig(global_crop_size=28, local_crop_size=14, num_local_crops=2)


def test_views_depend_on_seed_epoch_image_and_view_alone():
    image, other = decode(png(7, 40)), torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    augmentation = Augmentation(SMALL, MaskConfig(), grid=(4, 4), seed=1)
    first = augmentation(other, epoch=2, identity=99)
    augmentation(image, epoch=0, identity=5)
    torch.rand(3)
    again = augmentation(other, epoch=2, identity=99)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for change in ({"epoch": 3, "identity": 99}, {"epoch": 2, "identity": 98}):
        assert not torch.equal(first["pixel_values"], augmentation(other, **change)["pixel_values"])
    seeded = Augmentation(SMALL, MaskConfig(), grid=(4, 4), seed=2)(other, epoch=2, identity=99)
    assert not torch.equal(first["pixel_values"], seeded["pixel_values"])
    assert not torch.equal(first["global_color_ops"][0], first["global_color_ops"][1])


def test_views_of_one_image_have_randomness_of_their_own():
    same = ViewConfig(global_crop_size=28, num_local_crops=0, global_crop_blur=(0.5, 0.5), global_crop_solarize=(0.5, 0.5))
    sample = Augmentation(same, MaskConfig(ratios=(0.4,), ratio_jitter=(0.0,)), grid=(7, 7))(decode(png(7, 40)), 0, 1)
    for name in ("global_color_ops", "bool_masked_pos"):
        assert not torch.equal(*sample[name]), name


def test_shapes_and_types():
    sample = Augmentation(SMALL, MaskConfig(), grid=(4, 4))(torch.zeros(3, 40, 30, dtype=torch.uint8), 0, 0)
    views = collate([{**sample, "corrupt": ["x"]}, {**sample, "corrupt": []}])
    assert views.pixel_values.shape == (2, 2, 3, 28, 28) and views.pixel_values.dtype == torch.uint8
    assert views.local_pixel_values.shape == (2, 2, 3, 14, 14) and views.bool_masked_pos.shape == (2, 2, 4, 4)
    assert torch.equal(views.mask_indices, views.bool_masked_pos.flatten().nonzero().flatten())
    assert views.corrupt == ("x",)
    colored = views.augment_and_normalize(SMALL)
    assert colored.pixel_values.dtype == torch.float32 and colored.global_color_ops is None


def test_crops_have_torchvisions_distribution():
    torch.manual_seed(0)
    ours = random_crops((375, 500), (0.25, 1.0), 6000, keyed_generator(0, 0, 0, 0))
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


def test_crops_are_inside_even_thin_images():
    for index, size in enumerate([(3, 400), (400, 3), (1, 1), (50, 40)] * 50):
        for top, left, height, width in random_crops(size, (0.05, 0.25), 3, keyed_generator(0, 0, index, 0)):
            assert 0 <= top <= size[0] - height and 0 <= left <= size[1] - width and height > 0 and width > 0


def test_half_of_the_views_are_flipped():
    ramp = torch.arange(64, dtype=torch.uint8).expand(3, 64, 64)
    augmentation = Augmentation(ViewConfig(global_crop_size=16, num_local_crops=0))
    flipped = [
        bool(pixels[0, 0, 0] > pixels[0, -1, 0])
        for identity in range(400)
        for pixels in augmentation(ramp, 0, identity)["pixel_values"]
    ]
    assert np.mean(flipped) == pytest.approx(0.5, abs=0.05)


def test_crop_boxes_locate_every_pixel():
    """An image whose pixels hold their own row and column, against the geometry that comes with its views, flipped or not."""
    rows, columns = torch.meshgrid(torch.arange(120), torch.arange(200), indexing="ij")
    image = torch.stack([rows, columns, rows]).to(torch.uint8)
    augmentation = Augmentation(ViewConfig(global_crop_size=16, num_local_crops=0, global_crop_scale=(0.2, 0.6)))
    flipped = 0
    for identity in range(60):
        sample = augmentation(image, 0, identity)
        for view in range(2):
            y, x = relative_coordinates(
                relative_geometry(torch.tensor([0.0, 0.0, 120.0, 200.0, 0.0]), sample["crop_boxes"][view]), (16, 16)
            )
            y, x = (y + 0.5) * 120 / 16 - 0.5, (x + 0.5) * 200 / 16 - 0.5  # patches of the full image -> pixels
            pixels = sample["pixel_values"][view].permute(2, 0, 1).float()
            torch.testing.assert_close(pixels[0, :, 8][2:14], y[2:14], atol=1.0, rtol=0)
            torch.testing.assert_close(pixels[1, 8][2:14], x[2:14], atol=1.0, rtol=0)
            flipped += int(sample["crop_boxes"][view, 4])
    assert 40 < flipped < 80


def test_only_the_requested_views_are_masked():
    image, masks = decode(png(7, 40)), MaskConfig(shape="fixed_count_block", ratios=(0.6,), ratio_jitter=(0.0,))
    samples = [Augmentation(SMALL, masks, (4, 4), masked_views=count)(image, 0, 1) for count in (0, 1, None)]
    assert samples[0]["bool_masked_pos"] is None
    assert samples[1]["bool_masked_pos"].shape == (1, 4, 4) and samples[1]["bool_masked_pos"].sum() == 10
    assert torch.equal(samples[2]["bool_masked_pos"][0], samples[1]["bool_masked_pos"][0]) and samples[2][
        "bool_masked_pos"
    ].shape == (2, 4, 4)
    assert all(torch.equal(samples[0][name], samples[2][name]) for name in ("pixel_values", "crop_boxes", "local_pixel_values"))
    views = collate([{**samples[1], "corrupt": []}] * 3)
    assert views.mask_indices.view(3, 10).remainder(16).unique().numel() == 10 and views.crop_boxes.shape == (2, 3, 5)
    assert (
        set(views.tensors()) >= {"pixel_values", "bool_masked_pos", "mask_indices", "crop_boxes"}
        and "corrupt" not in views.tensors()
    )


def test_a_photograph_decoded_at_a_fraction_gives_nearly_the_same_views():
    rows, columns = np.meshgrid(np.arange(1200), np.arange(1600), indexing="ij")
    waves = 127 + 100 * np.sin(rows / 40) * np.cos(columns / 55)
    buffer = io.BytesIO()
    Image.fromarray(np.stack([waves, waves.T.reshape(1200, 1600), 255 - waves], -1).astype(np.uint8)).save(
        buffer, "JPEG", quality=95
    )
    encoded = EncodedImage(buffer.getvalue(), "large", epoch=1)
    augmentation = Augmentation(ViewConfig(global_crop_size=64, local_crop_size=24, num_local_crops=4))
    reduced = augmentation.decode_and_augment(encoded)
    full = augmentation(decode(encoded.data), 1, zlib.crc32(encoded.data))
    assert torch.equal(reduced["crop_boxes"], full["crop_boxes"]), "in pixels of the full image"
    for name in ("pixel_values", "local_pixel_values"):
        difference = (reduced[name].float() - full[name].float()).abs()
        assert 0 < difference.mean() < 2.5 and difference.max() < 60, name


def test_color_operations_have_the_chances_of_dino_in_every_view():
    """First view: always blurred, never solarized; second: one in ten and one in five; local ones: one in two and never.

    DINO and iBOT code: jitter .4, .4, .2, .1 of four in five, gray one in five, sigma of the blur from .1 to 2 pixels.
    """
    config, count = ViewConfig(num_local_crops=2), 4000
    augmentation = Augmentation(config, grid=(14, 14))
    drawn = np.stack([augmentation.draw((64, 64), 0, identity).color_ops for identity in range(count)])
    sigma, solarized, gray = drawn[..., 9], drawn[..., 10], drawn[..., 8]
    np.testing.assert_allclose((sigma > 0).mean(0), [1.0, 0.1, 0.5, 0.5], atol=0.03)
    np.testing.assert_allclose(solarized.mean(0), [0.0, 0.2, 0.0, 0.0], atol=0.03)
    assert (sigma[:, 0] > 0).all() and not solarized[:, [0, 2, 3]].any()
    assert 0.1 <= sigma[sigma > 0].min() < 0.12 and 1.98 < sigma.max() <= 2.0
    assert gray.mean() == pytest.approx(0.2, abs=0.02)
    strengths = drawn[..., 4:8] - (1.0, 1.0, 1.0, 0.0)
    np.testing.assert_allclose(np.abs(strengths).max((0, 1)), [0.4, 0.4, 0.2, 0.1], rtol=0.01)
    assert (strengths != 0).any(-1).mean() == pytest.approx(0.8, abs=0.02)
