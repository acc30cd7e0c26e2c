"""The image processor that is exported with a backbone."""

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers import BitImageProcessor


def image_processor(
    image_size: int, crop_pct: float = 0.875, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD
) -> BitImageProcessor:
    """Resize the short side, crop the center, normalize.

    Args:
        image_size: side of the crop in pixels.
        crop_pct: side of the crop as a fraction of the resized short side; 1 to use images that are already small in full.
    """
    return BitImageProcessor(
        size={"shortest_edge": round(image_size / crop_pct)},
        crop_size={"height": image_size, "width": image_size},
        image_mean=list(mean),
        image_std=list(std),
    )
