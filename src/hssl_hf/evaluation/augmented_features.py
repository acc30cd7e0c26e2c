"""Features of random crops, computed anew in every epoch by all processes together."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor

from hssl_hf.data.augmentation import Augmentation, ViewConfig
from hssl_hf.data.color import ColorJitter
from hssl_hf.data.loader import DataConfig, make_loader
from hssl_hf.data.source import count_images
from hssl_hf.engine.distributed import gather_rows
from hssl_hf.engine.signals import inherited_blocked
from hssl_hf.errors import UserError
from hssl_hf.evaluation.encoder import Encoder
from hssl_hf.evaluation.extraction import Extractor
from hssl_hf.evaluation.features import Representation
from hssl_hf.evaluation.images import LabeledImages
from hssl_hf.evaluation.label_free import LabelFreeConfig
from hssl_hf.evaluation.labels import number_labels
from hssl_hf.evaluation.linear import LinearConfig


class AugmentedFeatures:
    """Batches of features with labels, of one random crop per image, without the part that chooses a learning rate.

    Args:
        extractor: of the processes; its image processor gives size and normalization of the crops.
        encoder: pixels -> cls, patches.
        images: of the training split.
        representation: what stands for an image.
        config: of the training.
    Attributes:
        labels: (n,) numbers of the classes of all images.
        classes: their names; None where labels are mere numbers.
        num_classes, steps_per_epoch: of the training.
    Raises:
        UserError: if the batch does not divide among the processes, or there are fewer images than a batch.
    """

    def __init__(
        self,
        extractor: Extractor,
        encoder: Encoder | Callable,
        images: LabeledImages,
        representation: Representation,
        config: LinearConfig,
    ):
        accelerator = extractor.accelerator
        self.accelerator, self._encode = accelerator, extractor.encoding(encoder, representation)
        self.own, rest = divmod(config.batch_size, accelerator.num_processes)
        if rest:
            raise UserError(
                f"linear.batch_size={config.batch_size} does not divide among {accelerator.num_processes} processes"
            )
        names = images.class_names()
        by_position = images.labels()
        self.labels, self.classes = number_labels(list(by_position.values()), names, images.source)
        self.num_classes = int(self.labels.max()) + 1
        self._numbers = dict(zip(by_position.values(), self.labels.tolist(), strict=True))
        count = round(len(by_position) * (1 - config.validation_fraction))
        self.steps_per_epoch = count // config.batch_size
        if not self.steps_per_epoch:
            raise UserError(
                f"{count} training images are fewer than linear.batch_size={config.batch_size}; use a smaller batch"
            )
        self.views = crops_of(extractor.processor, config.crop_scale, config.clip_crops, config.interpolation)
        is_limited = (images.limit, images.limit_per_class) != (None, None)
        chunk = max(size for size in range(1, self.own + 1) if self.own % size == 0 and size <= extractor.config.batch_size)
        workers = extractor.workers()
        loader = make_loader(
            DataConfig(**asdict(images.source), num_workers=workers, fraction=1 - config.validation_fraction),
            Augmentation(self.views, seed=config.seed), chunk, accelerator.process_index, accelerator.num_processes,
            labels=True, positions=set(by_position) if is_limited else None,
        )  # fmt: skip
        self._loader, self._batches = loader, None

    def state_dict(self) -> dict:
        """Where the images of this process stand."""
        return self._loader.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self._loader.load_state_dict(state)

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of the next epoch, each the same on all processes."""
        device, gather = self.accelerator.device, partial(gather_rows, self.accelerator)
        if self._batches is None:
            with inherited_blocked():
                self._batches = iter(self._loader)
        for _ in range(self.steps_per_epoch):
            features, labels = [], []
            while len(labels) < self.own:
                batch = next(self._batches)
                views = batch.to(device).augment_and_normalize(self.views)
                features.append(self._encode(views.pixel_values[0]))
                labels += [self._numbers[label] for label in batch.labels]
            yield gather(torch.cat(features)).to(device), gather(torch.tensor(labels)).to(device)


def features_of_two_crops(
    extractor: Extractor,
    encoder: Encoder | Callable,
    images: LabeledImages,
    representation: Representation,
    config: LabelFreeConfig,
) -> tuple[Tensor, Tensor]:
    """Features (n, D) of two random crops of each of some images, on all processes; n is at most `config.images`."""
    accelerator, views = extractor.accelerator, crops_of(extractor.processor, config.crop_scale, crops=2)
    rank, processes, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    data = DataConfig(**asdict(images.source), num_workers=extractor.workers())
    wanted = min(config.images, count_images(images.source))
    batch = max(1, min(extractor.config.batch_size, wanted // processes))
    with inherited_blocked():
        batches = iter(make_loader(data, Augmentation(views, seed=config.seed), batch, rank, processes))
    encode, crops = extractor.encoding(encoder, representation), [[], []]
    for _ in range(max(1, wanted // (batch * processes))):
        pixels = next(batches).to(device).augment_and_normalize(views).pixel_values
        for kept, crop in zip(crops, pixels, strict=True):
            kept.append(encode(crop))
    first, second = (gather_rows(accelerator, torch.cat(kept)) for kept in crops)
    return first, second


def crops_of(
    processor: Callable, scale: tuple[float, float], clip: bool = False, interpolation: str = "bilinear", crops: int = 1
) -> ViewConfig:
    """Random crops, perhaps flipped, of the size and normalization of an image processor.

    Args:
        scale, clip, interpolation: as of the global crops of a pre-training.
        crops: of each image.
    Raises:
        UserError: if the crops of the processor are not squares of a known size.
    """
    if data_config := getattr(processor, "data_config", None):  # of timm
        height, width = data_config["input_size"][1:]
        mean, std = data_config["mean"], data_config["std"]
    else:
        size = getattr(processor, "crop_size", None) or getattr(processor, "size", None) or {}
        height, width = (size.get(side, size.get("shortest_edge")) for side in ("height", "width"))
        mean, std = processor.image_mean, processor.image_std
    if height is None or height != width:
        raise UserError(f"expected an image processor with square crops for a linear probe on crops, got {height} x {width}")
    return ViewConfig(
        global_crop_size=height, global_crop_scale=scale, num_local_crops=0, clip_crops=clip, interpolation=interpolation,
        jitter=ColorJitter(probability=0.0), gray_probability=0.0, global_crop_blur=(0.0,) * crops,
        global_crop_solarize=(0.0,) * crops, mean=tuple(mean), std=tuple(std),
    )  # fmt: skip
