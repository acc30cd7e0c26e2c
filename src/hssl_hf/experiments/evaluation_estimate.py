"""What an evaluation will take, before it is run: measured on a few images, the rest is arithmetic."""

from dataclasses import dataclass
from itertools import islice
from time import perf_counter

from torch import Tensor

from hssl_hf.config.evaluation_recipe import EvaluationRecipe
from hssl_hf.data.errors import StreamError
from hssl_hf.data.source import count_images
from hssl_hf.evaluation.encoder import Encoder
from hssl_hf.evaluation.extraction import Extractor
from hssl_hf.evaluation.images import LabeledImages

GIB = 2**30
MEASURED = 64  # images that are read and decoded
STEPS = 2  # batches that are encoded, after one that is not counted


@dataclass(frozen=True)
class EvaluationEstimate:
    """What an evaluation will take.

    Args:
        train_images, test_images: of the splits.
        passes: images that are decoded and encoded, of all epochs.
        encoded_per_second, decoded_per_second: images, by all processes and workers of this machine.
        cache_gib: of the features that are kept on disk.
        classifiers_gib: memory of linear classifiers, their gradients and momenta, of all processes together.
    """

    train_images: int
    test_images: int
    passes: int
    encoded_per_second: float
    decoded_per_second: float
    cache_gib: float
    classifiers_gib: float

    @property
    def hours(self) -> float:
        return self.passes / min(self.encoded_per_second, self.decoded_per_second) / 3600

    def table(self) -> str:
        """For the screen."""
        slower = "decoding" if self.decoded_per_second < self.encoded_per_second else "the encoder"
        rows = {
            "images": f"{self.train_images} to train, {self.test_images} to test",
            "encoded and decoded": f"{self.passes} images, of all epochs together",
            "encoder": f"{self.encoded_per_second:.0f} images/s",
            "decoding": f"{self.decoded_per_second:.0f} images/s",
            "time": f"{self.hours:.2f} h, limited by {slower}",
            "features on disk": f"{self.cache_gib:.3f} GiB",
            "classifiers": f"{self.classifiers_gib:.3f} GiB of memory",
        }
        return "\n".join(f"{name:21s}{value}" for name, value in rows.items())


def estimate_evaluation(recipe: EvaluationRecipe, extractor: Extractor, encoder: Encoder) -> EvaluationEstimate:
    """Estimate an evaluation with the devices and processes that are there.

    Raises:
        UserError: for images that cannot be read, and if neither metadata nor files of this machine hold how many there are.
    """
    train, test = recipe.data.splits(extractor.processor)
    counts = [_count(images) for images in (train, test)]
    decoded = _decoding_speed(test, extractor)
    encoded, width = _encoding_speed(recipe, extractor, encoder)
    config = recipe.linear
    is_augmented = recipe.protocol == "linear" and config.augment
    if recipe.protocol == "label_free":
        used = min(recipe.label_free.images, counts[1])
        passes, kept, classifiers = 3 * used, used, 0
    else:
        held_out = round(config.validation_fraction * counts[0])
        seen = config.epochs * (counts[0] - held_out) + held_out if is_augmented else counts[0]
        passes, kept = seen + counts[1], (held_out if is_augmented else counts[0]) + counts[1]
        classifiers = _classifier_bytes(recipe, width, train) if recipe.protocol == "linear" else 0
    cache = kept * width * 4 if extractor.cache else 0
    return EvaluationEstimate(*counts, passes, encoded, decoded, cache / GIB, classifiers / GIB)


def raw_pixel_gib(recipe: EvaluationRecipe, extractor: Extractor) -> float | None:
    """Memory of the preprocessed pixels of all images that a protocol reads; None if their number is not known."""
    train, test = recipe.data.splits(extractor.processor)
    try:
        counts = [_count(images) for images in (train, test)]
    except StreamError:
        return None
    used = min(recipe.label_free.images, counts[1]) if recipe.protocol == "label_free" else sum(counts)
    return used * _example(test, extractor).numel() * 4 / GIB


def _example(images: LabeledImages, extractor: Extractor) -> Tensor:
    """(1, C, H, W): the first image, preprocessed."""
    return extractor.processor([next(iter(images))[0]], return_tensors="pt")["pixel_values"]


def _count(images: LabeledImages) -> int:
    if images.limit_per_class is not None:
        return len(images.labels())
    count = count_images(images.source)
    return count if images.limit is None else min(count, images.limit)


def _decoding_speed(images: LabeledImages, extractor: Extractor) -> float:
    """Images per second by all workers of all processes, from some that are decoded in this one."""
    started, count = perf_counter(), 0
    for pixels, _ in islice(images, MEASURED):
        extractor.processor([pixels], return_tensors="pt")
        count += 1
    workers = max(1, extractor.workers()) * extractor.accelerator.num_processes
    return count * workers / (perf_counter() - started)


def _encoding_speed(recipe: EvaluationRecipe, extractor: Extractor, encoder: Encoder) -> tuple[float, int]:
    """Images per second by all processes, and D."""
    encode, batch = extractor.encoding(encoder, recipe.representation), recipe.extraction.batch_size
    pixels = _example(recipe.data.splits(extractor.processor)[1], extractor).expand(batch, -1, -1, -1)
    width = encode(pixels).shape[1]
    started = perf_counter()
    for _ in range(STEPS):
        features = encode(pixels)
    features.sum().item()  # which waits for the device
    return STEPS * batch * extractor.accelerator.num_processes / (perf_counter() - started), width


def _classifier_bytes(recipe: EvaluationRecipe, width: int, images: LabeledImages) -> int:
    names = images.class_names()
    classes = len(names) if names else len(set(images.labels().values()))
    parameters = (width + 1) * classes * len(recipe.linear.learning_rates)
    return 3 * 4 * parameters
