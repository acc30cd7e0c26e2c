"""Images of one to four channels: their normalization, and the color operations that have a meaning for them."""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hssl_hf.errors import UserError

if TYPE_CHECKING:
    from hssl_hf.data.augmentation import ViewConfig

logger = logging.getLogger(__name__)
MAX_CHANNELS = 4  # bands of an image that Pillow decodes
KEY = "model.backbone_kwargs.in_chans"


class ChannelsError(UserError):
    """Settings that do not suit the number of channels."""


def default_normalization(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, on values in [0, 1].

    ImageNet's for three channels; for one the averages of these.

    Raises:
        ChannelsError: for other numbers of channels, which have no default.
    """
    if channels == 3:
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    if channels == 1:
        return tuple((round(sum(values) / 3, 6),) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    raise ChannelsError(
        f"images of {channels} channels have no default mean and standard deviation; give those of your images, on values in "
        "[0, 1]: views.mean and views.std in a recipe, processor=image_processor(size, mean=..., std=...) in Python"
    )


def views_for_channels(views: "ViewConfig", channels: int) -> "ViewConfig":
    """The views of images with this number of channels.

    Three channels are red, green and blue. Saturation, hue and gray conversion leave an image of one channel as it is, so they
    are set to 0 with a message in the log, and ImageNet's mean and standard deviation are replaced by their averages. With two
    or four channels these operations have no meaning, and mean and standard deviation have no default: both are refused.

    Raises:
        ChannelsError: for settings that do not suit the channels.
    """
    if type(channels) is not int or not 1 <= channels <= MAX_CHANNELS:
        raise ChannelsError(f"expected {KEY} from 1 to {MAX_CHANNELS}, the bands that image files have, got {channels!r}")
    jitter = views.jitter
    of_color = {"jitter.saturation": jitter.saturation, "jitter.hue": jitter.hue} if jitter.probability else {}
    of_color = of_color | {"gray_probability": views.gray_probability}
    of_color = {f"views.{name}": value for name, value in of_color.items() if value and channels != 3}
    if channels == 1:
        if of_color:
            logger.warning("set to 0, since they have no effect on images of one channel: %s", ", ".join(of_color))
        replaced = zip((views.mean, views.std), default_normalization(3), default_normalization(1), strict=True)
        mean, std = (gray if value == rgb else value for value, rgb, gray in replaced)
        jitter = replace(jitter, saturation=0.0, hue=0.0)
        views, of_color = replace(views, mean=mean, std=std, jitter=jitter, gray_probability=0.0), {}
    lengths = {"views.mean": len(views.mean), "views.std": len(views.std)}
    problems = [f"{name}: expected {channels} values, got {n}" for name, n in lengths.items() if n != channels]
    problems += [f"{name}: expected 0, since it is about red, green and blue, got {value}" for name, value in of_color.items()]
    if problems:
        raise ChannelsError(f"images of {channels} channels ({KEY}) need other settings:\n  " + "\n  ".join(problems))
    return views
