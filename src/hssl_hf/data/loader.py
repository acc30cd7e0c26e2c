"""The loader of a run: stream, views and batches of this process, and how it is resumed."""

import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Collection, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from hssl_hf.data.augmentation import Augmentation
from hssl_hf.data.errors import StreamError
from hssl_hf.data.local_dataset import LocalDataset
from hssl_hf.data.source import Source, count_images
from hssl_hf.data.stream import ImageStream
from hssl_hf.data.views import ViewStream, collate
from hssl_hf.fields import Fraction, Images, PositiveFraction, Range

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataConfig(Source):
    """The images to train on: a `Source`, and how to read it.

    Args:
        images_per_epoch: length of an epoch in images; None for the length of the dataset.
        num_workers: worker processes per training process.
        shuffle_buffer_size: images that a worker shuffles together.
        max_corrupt_fraction: fraction of undecodable images at which reading stops with an error.
        fraction: of the images to use, chosen by their bytes, always the same ones; all are read.
    """

    path: str = "ILSVRC/imagenet-1k"
    images_per_epoch: Images | None = None
    num_workers: Annotated[int, Range(0, 1024)] = 4
    shuffle_buffer_size: Annotated[int, Range(1, 10**7)] = 2048
    max_corrupt_fraction: Fraction = 0.01
    fraction: PositiveFraction = 1.0


def epoch_length(data: DataConfig) -> int:
    """Length of an epoch in images.

    Raises:
        StreamError: if the source cannot be opened, is empty, or does not hold its length.
    """
    images = ImageStream(data, shuffle_buffer_size=1)
    next(iter(images))  # a missing column or an empty stream shows here, not in a worker
    length = data.images_per_epoch or count_images(data, images.dataset)
    is_local = isinstance(images.dataset, LocalDataset)
    if os.environ.get("RANK", "0") == "0":
        logger.info("data: %s", images.dataset.summary() if is_local else f"{length} images per epoch")
    lost = images.dataset.lost_images() if is_local else 0
    if lost and lost > data.max_corrupt_fraction * (lost + len(images.dataset)):
        raise StreamError(
            f"data.path={data.path!r}: about {lost} images are lost in damaged files, more than data.max_corrupt_fraction="
            f"{data.max_corrupt_fraction}: {images.dataset.summary()}\nRepair or remove the files, or allow a larger fraction."
        )
    return round(data.fraction * length)


def make_loader(
    data: DataConfig,
    augmentation: Augmentation,
    batch: int,
    rank: int,
    world_size: int,
    labels: bool = False,
    positions: Collection[tuple[int, int]] | None = None,
) -> StatefulDataLoader:
    """Endless batches of `Views`.

    Args:
        augmentation: image -> views; its seed is that of the order too.
        batch: images of this process per micro-batch.
        rank, world_size: this process among the processes.
        labels, positions: as in `ImageStream`.
    """
    seed, process = augmentation.seed, {"rank": rank, "world_size": world_size}
    window = data.shuffle_buffer_size
    images = ImageStream(
        data, seed=seed, **process, shuffle_buffer_size=window, minimum=batch, labels=labels, positions=positions
    )
    return StatefulDataLoader(
        ViewStream(images, augmentation, data.max_corrupt_fraction, data.fraction),
        batch_size=batch,
        num_workers=data.num_workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),
        worker_init_fn=obey_parent_only,
    )


def obey_parent_only(_worker: int) -> None:
    """Leave signals to the process that has started this worker: it writes a checkpoint, with data that workers have prepared.

    Terminals and schedulers send signals to workers too. Only SIGTERM of the parent, which ends workers that hang, is obeyed.
    """
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # the thread takes them, even while this one is in native code
    parent = multiprocessing.parent_process().pid

    def wait() -> None:
        while signal.sigwaitinfo(numbers).si_pid != parent:
            pass
        os._exit(0)  # torch would report any other code as a failure, even when the parent itself ends its workers

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def worker_errors_as_stream_errors():
    """Convert the death of a worker process to a `StreamError`.

    Raises:
        StreamError: if one has died.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise a second error in the midst of this one
        files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
        received = any(name.endswith("torch/multiprocessing/reductions.py") for name in files)  # a tensor, while it was sent
        if not received and "DataLoader worker" not in str(error):
            raise
        raise StreamError(
            f"a data loader worker died, usually because memory ran out: {error}\nStart again with "
            "resume_from_checkpoint=auto, perhaps with smaller data.shuffle_buffer_size, or more shared memory (/dev/shm)."
        ) from error


def restore_loader(loader: StatefulDataLoader, positions: Sequence[Mapping], rank: int, world_size: int) -> None:
    """Continue where the loaders of a checkpoint stopped, in the same order if processes and workers are as many.

    Otherwise the order is another; no image is lost or repeated in either case.

    Args:
        positions: `state_dict` of the loader of every process.
        rank, world_size: this process among those of now.
    """
    states = [_worker_states(position) for position in positions]
    workers = {
        len(of_process) if "_snapshot" in position else 0 for position, of_process in zip(positions, states, strict=True)
    }
    if len(positions) == world_size and workers == {loader.num_workers}:
        loader.load_state_dict(positions[rank])
        return
    if rank == 0 and len(positions) == world_size:
        before = " or ".join(map(str, sorted(workers)))
        logger.warning(
            "this run had %s workers and is resumed with %d: the order of images changes", before, loader.num_workers
        )
    loader.dataset.reshard_from([state for of_process in states for state in of_process])


def _worker_states(position: Mapping) -> list[dict]:
    """The states of a loader's streams: of its workers in order, or of the process itself."""
    if "_snapshot" in position:
        workers = position["_snapshot"]["_worker_snapshots"]
        return [workers[f"worker_{number}"]["dataset_state"] for number in range(len(workers))]
    return [position["dataset_state"]]
