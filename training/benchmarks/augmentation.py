"""Images per core-second from encoded bytes to normalized views, against the usual pipeline on Pillow images.

    python -m training.benchmarks.augmentation --folder PHOTOGRAPHS [--batch 16] [--images 240]

2×224 and 10×96 pixels per image with the operations and chances of DINO. All work is counted on one thread: what workers do
(decoding, crops) and what the device does (color operations, normalization), here a CPU too.
"""

import io
import random
from itertools import islice
from pathlib import Path
from time import process_time

import torch
from PIL import Image, ImageFilter
from torchvision import transforms as t
from torchvision.transforms import InterpolationMode

from hssl_hf.data.augmentation import Augmentation, MaskConfig, ViewConfig
from hssl_hf.data.source import Source
from hssl_hf.data.stream import ImageStream
from hssl_hf.data.views import collate
from training.benchmarks.harness import benchmark_parser, isolated

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def ours(images: list, batch: int) -> dict[str, float]:
    """Seconds of the workers' part and of the device's part."""
    config = ViewConfig()
    augmentation = Augmentation(config, MaskConfig())
    seconds = {"workers": 0.0, "device": 0.0}
    for first in range(0, len(images), batch):
        started = process_time()
        views = collate([augmentation.decode_and_augment(image) for image in images[first : first + batch]])
        prepared = process_time()
        views.augment_and_normalize(config)
        seconds["workers"] += prepared - started
        seconds["device"] += process_time() - prepared
    return seconds


def pillow(images: list, batch: int) -> dict[str, float]:
    """The reference recipe of DINO: torchvision's operations on Pillow images, one view after the other."""
    flip_and_color = [
        t.RandomHorizontalFlip(0.5),
        t.RandomApply([t.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
        t.RandomGrayscale(0.2),
    ]
    finish = [t.ToTensor(), t.Normalize(MEAN, STD)]

    def view(size: int, scale: tuple[float, float], blur: float, solarize: float):
        crop = t.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC)
        blurred = t.RandomApply([t.Lambda(_pillow_blur)], p=blur)
        return t.Compose([crop, *flip_and_color, blurred, t.RandomSolarize(128, solarize), *finish])

    views = [view(224, (0.14, 1.0), 1.0, 0.0), view(224, (0.14, 1.0), 0.1, 0.2)] + [view(96, (0.05, 0.4), 0.5, 0.0)] * 10
    started = process_time()
    for first in range(0, len(images), batch):
        samples = []
        for image in images[first : first + batch]:
            decoded = Image.open(io.BytesIO(image.data)).convert("RGB")
            samples.append([transform(decoded) for transform in views])
        for number in range(len(views)):
            torch.stack([sample[number] for sample in samples])
    return {"workers": process_time() - started, "device": 0.0}


def _pillow_blur(image):
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


VARIANTS = {"ours": ours, "pillow": pillow}


def measure_variant(variant: str, folder: str, batch: int, count: int, repeats: int) -> dict[str, float]:
    """CPU milliseconds per image of the fastest repetition."""
    torch.manual_seed(0)
    images = list(islice(ImageStream(Source(folder), shuffle_buffer_size=1), count))
    VARIANTS[variant](images[:batch], batch)
    fastest = min((VARIANTS[variant](images, batch) for _ in range(repeats)), key=lambda seconds: sum(seconds.values()))
    return {stage: 1000 * seconds / len(images) for stage, seconds in fastest.items()}


def main() -> None:
    parser = benchmark_parser(__doc__, repeats=3, batch=16, images=240)
    parser.add_argument("--folder", required=True, help="photographs, in any form that data.path takes")
    options = parser.parse_args()
    folder = str(Path(options.folder).resolve())
    rates = {}
    print(f"{'pipeline':10}{'workers ms':>12}{'device ms':>12}{'images per core-second':>24}")
    for variant in VARIANTS:
        cost = isolated(measure_variant, variant, folder, options.batch, options.images, options.repeats)
        rates[variant] = 1000 / sum(cost.values())
        print(f"{variant:10}{cost['workers']:12.2f}{cost['device']:12.2f}{rates[variant]:24.1f}")
    print(f"ours / pillow {rates['ours'] / rates['pillow']:.2f}×")


if __name__ == "__main__":
    main()
