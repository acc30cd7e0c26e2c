"""Images of one, two and four channels: settings of their views, crops and color operations."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from hssl_hf.config.recipe import Recipe, load_recipe
from hssl_hf.config.strict_yaml import RecipeError
from hssl_hf.data import color_opencv, color_torch
from hssl_hf.data.augmentation import Augmentation, ViewConfig
from hssl_hf.data.channels import ChannelsError, default_normalization, views_for_channels
from hssl_hf.data.color import GRAY, HUE, NEUTRAL, SATURATION, STRENGTHS, ColorJitter
from hssl_hf.data.views import collate

COLORLESS = {"jitter": ColorJitter(saturation=0.0, hue=0.0), "gray_probability": 0.0}
SMALL = {"global_crop_size": 28, "local_crop_size": 14, "num_local_crops": 2}
FOUR = {"mean": (0.1, 0.2, 0.3, 0.4), "std": (0.2, 0.3, 0.4, 0.5)}


def recipe(*settings: str, channels: int | str = 4) -> Recipe:
    return load_recipe(None, [f"model.backbone_kwargs.in_chans={channels}", *settings])


def test_three_channels_are_left_as_they_are():
    views = ViewConfig()
    assert views_for_channels(views, 3) is views and recipe(channels=3).views == Recipe().views == views


def test_gray_images_have_averages_of_imagenet_and_no_colors(caplog):
    with caplog.at_level(logging.WARNING):
        views = recipe("views.jitter.brightness=0.3", channels=1).views
    assert views.mean == (0.449,) and views.std == (0.226,) and views.num_channels == 1
    assert views.jitter == ColorJitter(brightness=0.3, saturation=0.0, hue=0.0) and views.gray_probability == 0
    assert "views.jitter.saturation, views.jitter.hue, views.gray_probability" in caplog.text


def test_the_recipe_of_gray_images_is_the_same_after_saving(tmp_path, caplog):
    made = recipe("views.mean=[0.3]", channels=1)
    made.save(tmp_path / "recipe.yaml")
    caplog.clear()
    assert load_recipe(tmp_path / "recipe.yaml") == made and made.views.mean == (0.3,) and made.views.std == (0.226,)
    assert not caplog.records


def test_four_channels_need_statistics_and_no_colors():
    with pytest.raises(RecipeError) as error:
        recipe()
    for text in ("views.mean: expected 4 values, got 3", "views.std: expected 4 values, got 3"):
        assert text in str(error.value)
    for name in ("views.jitter.saturation", "views.jitter.hue", "views.gray_probability"):
        assert f"{name}: expected 0" in str(error.value)
    with pytest.raises(RecipeError, match=r"views\.mean") as error:
        recipe("views.jitter.probability=0")
    assert "jitter" not in str(error.value), "no jitter, no saturation"
    colorless = ["views.jitter={saturation: 0, hue: 0}", "views.gray_probability=0"]
    views = recipe("views.mean=[0.1, 0.2, 0.3, 0.4]", "views.std=[0.2, 0.3, 0.4, 0.5]", *colorless).views
    assert views.num_channels == 4 and views.jitter.brightness == 0.4


@pytest.mark.parametrize("channels", [0, 5, "two", 1.0, True])
def test_other_numbers_of_channels_are_refused(channels):
    with pytest.raises(RecipeError, match=r"expected model.backbone_kwargs.in_chans from 1 to 4, the bands"):
        recipe(channels=channels)


@pytest.mark.parametrize("channels", [1, 3])
def test_wrong_numbers_of_means_are_refused(channels):
    with pytest.raises(RecipeError, match=r"views.mean: expected \d values, got 2"):
        recipe("views.mean=[0.5, 0.5]", channels=channels)


def test_four_channels_have_no_default_statistics():
    assert default_normalization(1) == ((0.449,), (0.226,))
    with pytest.raises(ChannelsError, match="images of 4 channels have no default mean"):
        default_normalization(4)


def views_of(image: torch.Tensor, config: ViewConfig):
    augmentation = Augmentation(config)
    samples = [{**augmentation(image, 0, number), "corrupt": []} for number in range(6)]
    return collate(samples)


@pytest.fixture
def image() -> torch.Tensor:
    """(4, 40, 50) smooth bands that differ."""
    rows, columns = np.mgrid[:40, :50]
    bands = [rows * 6, columns * 5, rows * 2 + columns * 2, 255 - rows * 5]
    return torch.from_numpy(np.stack(bands).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_crops_are_those_of_every_band_alone(image, channels):
    """Also where a crop is flipped. Resizing may round differently in a layout of three channels."""
    mean = (0.5,) * channels
    views = views_of(image[:channels], ViewConfig(**SMALL, **COLORLESS, mean=mean, std=mean))
    assert views.pixel_values.shape == (2, 6, channels, 28, 28) and views.crop_boxes[..., 4].sum() > 0
    for band in range(channels):
        rgb = views_of(image[[band] * 3], ViewConfig(**SMALL, **COLORLESS))
        for name in ("pixel_values", "local_pixel_values"):
            difference = getattr(views, name)[:, :, band].int() - getattr(rgb, name)[:, :, 0].int()
            assert difference.abs().max() <= 1
        assert torch.equal(views.crop_boxes, rgb.crop_boxes) and torch.equal(views.global_color_ops, rgb.global_color_ops)


@pytest.mark.parametrize("backend", [color_opencv, color_torch])
def test_gray_images_are_colored_as_gray_rgb_images(image, backend):
    """Brightness, contrast, blur and solarization of one channel are those of three equal ones."""
    config = ViewConfig(**SMALL, **COLORLESS, global_crop_solarize=(0.5, 0.5))
    views = views_of(image[[0] * 3], config)
    rgb = backend.apply_color_ops(views.pixel_values, views.global_color_ops, (0.4,) * 3, (0.2,) * 3)
    one = backend.apply_color_ops(views.pixel_values[:, :, :1], views.global_color_ops, (0.4,), (0.2,))
    assert one.shape == (2, 6, 1, 28, 28)
    torch.testing.assert_close(one, rgb[:, :, :1], atol=0.02, rtol=0)  # the mean of the luminance is rounded: a gray level


def test_both_backends_agree_on_four_channels(image):
    views = views_of(image, ViewConfig(**SMALL, **COLORLESS, **FOUR, global_crop_solarize=(0.3, 0.3)))
    arguments = (views.pixel_values, views.global_color_ops, FOUR["mean"], FOUR["std"])
    opencv, floats = (backend.apply_color_ops(*arguments) for backend in (color_opencv, color_torch))
    assert opencv.shape == (2, 6, 4, 28, 28)
    levels = (opencv - floats).abs() * torch.tensor(FOUR["std"]).view(4, 1, 1) * 255
    assert levels.mean() < 1.0 and levels.quantile(0.99) < 4


def test_bands_are_normalized_and_blurred_each_for_itself(image):
    """A constant band stays constant, whatever the others hold."""
    image[2] = 51
    config = ViewConfig(**SMALL, **FOUR, gray_probability=0.0, jitter=ColorJitter(0, 0, 0, 0), global_crop_blur=(1.0, 1.0))
    pixels = views_of(image, replace(config, global_crop_solarize=(0.0, 0.0))).augment_and_normalize(config).pixel_values
    torch.testing.assert_close(pixels[:, :, 2], torch.full_like(pixels[:, :, 2], (0.2 - 0.3) / 0.4))
    assert pixels[:, :, 0].std() > 0.1


def test_no_operation_of_color_is_drawn_without_red_green_and_blue(image):
    config = views_for_channels(ViewConfig(**SMALL), 1)
    operations = views_of(image[:1], config).global_color_ops
    assert (operations[..., [SATURATION, HUE, GRAY]] == torch.tensor([1.0, 0.0, 0.0])).all()
    assert (operations[..., STRENGTHS] != torch.tensor(NEUTRAL)).any(), "brightness and contrast remain"
