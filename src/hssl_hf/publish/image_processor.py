"""The image processor that is exported with a backbone."""

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers import BitImageProcessor


def image_processor(
    image_size: int, crop_pct: float = 0.875, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD
) -> BitImageProcessor:
    """Resize the short side, crop the center, normalize.

    With three channels any image is converted to RGB. With another number nothing is converted: images must have as many, at 8
    bits each; transformers has no processor that scales 16 bits. One channel: Pillow images of mode L, and tensors or arrays.
    Two and four: Pillow images, and tensors (C, H, W); arrays with channels last need `input_data_format="channels_last"`.

    Args:
        image_size: side of the crop in pixels.
        crop_pct: side of the crop as a fraction of the resized short side; 1 to use images that are already small in full.
        mean, std: of each channel, on values in [0, 1]; their number is that of the channels.
    """
    unconverted = {} if len(mean) == 3 else {"do_convert_rgb": False}
    if len(mean) not in (1, 3):  # numbers that not all versions of transformers distinguish from height and width
        unconverted["input_data_format"] = "channels_first"
    return BitImageProcessor(
        size={"shortest_edge": round(image_size / crop_pct)},
        crop_size={"height": image_size, "width": image_size},
        image_mean=list(mean),
        image_std=list(std),
        **unconverted,
    )
