"""The runner of all evaluations on frozen backbones: images of a split -> features, on the devices and processes there are.

Workers decode and preprocess, every process encodes its own images, and all of them get the features of all.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from hssl_hf.data.errors import StreamError
from hssl_hf.data.loader import obey_parent_only
from hssl_hf.engine.distributed import any_process, gather_rows
from hssl_hf.engine.signals import inherited_blocked
from hssl_hf.errors import UserError, reason
from hssl_hf.evaluation.encoder import Encoder
from hssl_hf.evaluation.feature_cache import FeatureCache, Part
from hssl_hf.evaluation.features import FeatureSet, Representation
from hssl_hf.evaluation.images import Account, LabeledImages, Position, Sample, warn_once
from hssl_hf.evaluation.labels import Label
from hssl_hf.evaluation.progress import ProgressBar
from hssl_hf.fields import BatchSize, Range, Section

PART_IMAGES = 8192  # after which a process keeps what it has, so that an interruption loses no more


@dataclass(frozen=True)
class ExtractionConfig(Section):
    """How features are computed.

    Args:
        batch_size: images of a process that are encoded at once.
        num_workers: processes that decode, per process; None for one per core, at most 8, beside an accelerator, and none on
            CPUs, which encoding keeps busy.
        mixed_precision: no, or bf16 to autocast.
        cache: keep features on disk, and take them from there where weights, preprocessing and images are the same.
        cache_limit_gib: size of the cache above which the features that were not used for longest are removed.
    """

    batch_size: BatchSize = 64
    num_workers: Annotated[int, Range(0, 1024)] | None = None
    mixed_precision: Literal["no", "bf16"] = "no"
    cache: bool = True
    cache_limit_gib: Annotated[float, Range(above=0, most=1_000_000)] = 20.0

    def workers(self, processes: int, device: torch.device) -> int:
        """Of one of so many processes of this machine, which encodes on a device."""
        if self.num_workers is None and device.type == "cpu":
            return 0
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(8, max(1, cores // processes)) if self.num_workers is None else self.num_workers


class Batch(NamedTuple):
    """Images of one worker.

    Args:
        pixels: (B, C, H, W) preprocessed; None if none could be decoded.
        samples: of these B images, without their pixels, and of those that could not be decoded.
        error: why reading ends here.
    """

    pixels: Tensor | None
    samples: list[Sample]
    error: UserError | None


class Extractor:
    """Computes the features of frozen encoders.

    Args:
        accelerator: of the processes, and of the device on which images are encoded.
        processor: an image processor of transformers or timm.
        config: how.
        cache: where features are kept; None for nowhere.
        stop: whether this process is to stop; then all do, and there are no features.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        processor: Callable,
        config: ExtractionConfig,
        cache: FeatureCache | None = None,
        stop: Callable[[], bool] = lambda: False,
    ):
        self.accelerator, self.processor, self.config, self.cache, self.stop = accelerator, processor, config, cache, stop

    def extract(
        self, encoder: Encoder | Callable, images: LabeledImages, representation: Representation, progress: str | None = None
    ) -> FeatureSet | None:
        """Features of all images, in all processes; None if any of them stops.

        Args:
            encoder: pixels -> cls, patches; if it is a module, it is moved to the device.
            images: of a split.
            representation: what stands for an image.
            progress: caption of a progress bar; None for none.
        Raises:
            UserError: for images and labels that cannot be read, and features that are not finite.
        """
        accelerator = self.accelerator
        entry = self.cache.entry(encoder, self.processor, images, representation, self.config) if self.cache else None
        known = entry.load() if entry else None
        if not any_process(accelerator, known is None):
            self._warn(known[1])
            return known[0]
        kept = entry.parts() if entry and accelerator.is_local_main_process else []
        there = torch.cat([part.keys for part in kept]) if kept else torch.empty(0, 3, dtype=torch.int64)
        finished = frozenset(Position(*position) for position in gather_rows(accelerator, there)[:, :2].tolist())
        names = images.class_names()
        account, own, error = Account(), list(kept), None
        try:
            for part in self._encode(encoder, images.share(*self._place(), finished), representation, account, progress):
                own.append(part)
                if entry:
                    entry.add_part(part)
        except UserError as caught:
            error = caught
        self._raise_everywhere(error)
        if any_process(accelerator, self.stop()):
            return None
        result, messages = self._gathered(own, names, account, images)
        self._warn(messages)
        if entry and accelerator.is_local_main_process:
            entry.complete(result, messages)
        return result

    def _warn(self, messages: list[str]) -> None:
        for message in messages if self.accelerator.is_main_process else ():
            warn_once(message)

    def workers(self) -> int:
        """Processes of this process that decode."""
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", self.accelerator.num_processes))
        return self.config.workers(processes, self.accelerator.device)

    def _place(self) -> tuple[int, int]:
        return self.accelerator.process_index, self.accelerator.num_processes

    def _raise_everywhere(self, error: UserError | None) -> None:
        """Raise the first error of any process in all of them, so that none waits for one that has ended."""
        for caught in gather_object([error]):
            if caught is not None:
                raise caught

    def encoding(self, encoder: Encoder | Callable, representation: Representation) -> Callable[[Tensor], Tensor]:
        """What maps pixels (B, C, H, W) to features (B, D) float32 on the device, to which a module is moved."""
        device = self.accelerator.device
        if isinstance(encoder, nn.Module):
            encoder = encoder.to(device).eval()

        @torch.no_grad()
        def encode(pixels: Tensor) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=self.config.mixed_precision == "bf16"):
                return representation(encoder, pixels.to(device, non_blocking=True))

        return encode

    def _encode(
        self, encoder: Callable, images: LabeledImages, representation: Representation, account: Account, progress: str | None
    ) -> Iterator[Part]:
        """Features of this process's images, in parts."""
        encode, features, samples = self.encoding(encoder, representation), [], []
        is_shown = progress is not None and self.accelerator.is_main_process
        with ProgressBar(desc=progress, unit="img", disable=not is_shown, leave=False) as bar:
            for batch in self._batches(images):
                if batch.error:
                    raise batch.error
                for sample in batch.samples:
                    account.add(sample)
                if batch.pixels is not None:
                    features.append(encode(batch.pixels).cpu())
                    samples += [sample for sample in batch.samples if not sample.problem]
                bar.update(len(batch.samples) * self.accelerator.num_processes)
                if len(samples) >= PART_IMAGES:
                    yield _part(features, samples)
                    features, samples = [], []
                if self.stop():
                    return
        if samples:
            yield _part(features, samples)

    def _batches(self, images: LabeledImages) -> Iterator[Batch]:
        workers = self.workers()
        loader = DataLoader(
            _Samples(images),
            batch_size=self.config.batch_size,
            num_workers=workers,
            collate_fn=partial(_collate, self.processor),
            pin_memory=self.accelerator.device.type == "cuda",
            worker_init_fn=obey_parent_only,
        )
        with inherited_blocked() if workers else contextlib.nullcontext():
            batches = iter(loader)
        yield from batches

    def _gathered(
        self, own: list[Part], names: list[str] | None, account: Account, images: LabeledImages
    ) -> tuple[FeatureSet, list[str]]:
        """The features of all processes together, and what to warn of."""
        gather = partial(gather_rows, self.accelerator)
        features = gather(torch.cat([part.features for part in own]) if own else torch.empty(0, 0))
        keys = gather(torch.cat([part.keys for part in own]) if own else torch.empty(0, 3, dtype=torch.int64))
        labels: list[Label] = gather_object([label for part in own for label in part.labels])
        together = Account()
        for other in gather_object([account]):
            together.merge(other)
        messages = together.messages(images.source, len(keys))
        return FeatureSet.joined(features, labels, names, keys, images.source), messages


class _Samples(IterableDataset):
    """The samples of a worker; an error for users is the last of them.

    An exception that left the worker would come with the text of its traceback.
    """

    def __init__(self, images: LabeledImages):
        self.images = images

    def __iter__(self) -> Iterator[Sample | UserError]:
        try:
            yield from self.images.samples()
        except UserError as error:
            yield error


def _collate(processor: Callable, samples: list[Sample | UserError]) -> Batch:
    """The samples of a batch, preprocessed together, as long as none is an error."""
    errors = [sample for sample in samples if isinstance(sample, UserError)]
    read = [sample for sample in samples if isinstance(sample, Sample)]
    pixels = [sample.pixels for sample in read if sample.pixels is not None]
    stacked = None
    if pixels and not errors:
        try:
            stacked = processor(pixels, return_tensors="pt")["pixel_values"]
        except (RuntimeError, TypeError, ValueError) as error:
            errors.append(StreamError(
                f"the image processor could not make a batch of {len(pixels)} images ({reason(error)}); if it leaves them in "
                "different sizes, use one that crops all to one size"
            ))  # fmt: skip
    return Batch(stacked, [sample._replace(pixels=None) for sample in read], next(iter(errors), None))


def _part(features: list[Tensor], samples: list[Sample]) -> Part:
    keys = torch.tensor([[*sample.position, sample.checksum] for sample in samples])
    return Part(torch.cat(features), [sample.label for sample in samples], keys)
