"""What the processes that read, decode and augment images take of the machine's memory."""

import math

from hssl_hf.config.recipe import Recipe
from hssl_hf.data.shard_reader import READ_ROWS
from hssl_hf.data.views import collate
from hssl_hf.models.modeling_student_teacher import StudentTeacherPreTrainedModel
from hssl_hf.pretraining.step_memory import PHOTOGRAPH, random_samples

ENCODED = 110_000  # bytes of an image in its file, as in ImageNet
DECODED = 3  # copies of an image while it is decoded and cropped
PREFETCHED = 2  # batches that a worker prepares in advance, by default of PyTorch's loaders
PROCESS = 64 * 2**20  # bytes of a worker by itself, beside what it shares with its parent; measured


def worker_memory(recipe: Recipe, model: StudentTeacherPreTrainedModel, images: int) -> tuple[int, float]:
    """For images like those of ImageNet.

    Args:
        model: of the recipe, which may be on the meta device.
        images: of a micro-batch of one training process.
    Returns:
        the number of workers of one training process, and the most bytes that they and their batches take: of every worker the
        images that it shuffles, as they are in their files, one that is decoded, a batch that grows out of its samples and
        those that wait; and the batch in use, which is kept for a replay. Without workers the process itself reads.
    """
    workers = recipe.data.num_workers
    batch = images * sum(value.nbytes for value in collate(random_samples(recipe, model, 1)).tensors().values())
    encoded = (recipe.data.shuffle_buffer_size + READ_ROWS) * ENCODED
    decoded = DECODED * model.config.num_channels * math.prod(PHOTOGRAPH)
    if not workers:
        return 0, float(encoded + decoded + 3 * batch)
    return workers, float(workers * (PROCESS + encoded + decoded + (2 + PREFETCHED) * batch) + 2 * batch)
