"""Linear probes: features of the training split, epoch after epoch, the classifiers of all rates, and the choice of one."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from hssl_hf.engine.distributed import any_process
from hssl_hf.errors import UserError
from hssl_hf.evaluation.augmented_features import AugmentedFeatures
from hssl_hf.evaluation.classification import Classification, rank_classes
from hssl_hf.evaluation.encoder import Encoder
from hssl_hf.evaluation.extraction import Extractor
from hssl_hf.evaluation.features import FeatureSet, Representation
from hssl_hf.evaluation.labels import align_labels, require_comparable
from hssl_hf.evaluation.linear import LinearClassifiers, LinearConfig
from hssl_hf.evaluation.probe_state import ProbeState
from hssl_hf.evaluation.progress import ProgressBar
from hssl_hf.evaluation.splits import LabeledData, Splits, extract_splits

logger = logging.getLogger(__name__)


class TrainingFeatures(Protocol):
    """Features to train on: batches (n, D) with labels (n,), the same on all processes."""

    steps_per_epoch: int

    def state_dict(self) -> dict:
        """Where this process stands between two epochs."""

    def load_state_dict(self, state: dict) -> None:
        """Continue from there."""

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of the next epoch."""


class CachedFeatures:
    """Features that were computed once, in a new order in every epoch.

    Args:
        features: (n, D), with labels (n,).
        config: of the training.
    """

    def __init__(self, features: Tensor, labels: Tensor, config: LinearConfig):
        self.features, self.labels, self.config = features, labels, config
        self.steps_per_epoch = -(-len(labels) // config.batch_size)
        self._generator = torch.Generator().manual_seed(config.seed)

    def state_dict(self) -> dict:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        self._generator.set_state(state["generator"])

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.randperm(len(self.labels), generator=self._generator).split(self.config.batch_size):
            index = index.to(self.features.device)
            if len(index) > 1 or self.config.normalize != "batch_norm":
                yield self.features[index], self.labels[index]


class LinearResult(NamedTuple):
    """What a linear probe gives.

    Args:
        classification: of the test images, by the chosen classifier after the last epoch.
        settings: the chosen learning_rate per 256 images, and its validation_top1 in percent where it was chosen.
        best_on_test: the best top-1 of any learning rate after any epoch, which test labels have chosen.
        test: the test images.
    """

    classification: Classification
    settings: dict[str, float]
    best_on_test: float
    test: FeatureSet


def linear_probe(
    extractor: Extractor, encoder: Encoder | Callable, data: LabeledData, representation: Representation, config: LinearConfig
) -> LinearResult:
    """Train linear classifiers on the training split, choose one on a held-out part of it, and classify the test split.

    Raises:
        UserError: for images, labels, features and settings with which an accuracy would mean nothing.
    """
    if not config.augment:
        return cached_probe(extractor.accelerator, extract_splits(extractor, encoder, data, representation, "linear"), config)
    training, testing = data.splits(extractor.processor)
    features = AugmentedFeatures(extractor, encoder, training, representation, config)
    test = _numbered(extractor.extract(encoder, testing, representation, f"linear: {testing.source.split}"), features)
    require_comparable(features.labels, test.labels)
    validation = None
    if config.validation_fraction:
        held_out = training.held_out(config.validation_fraction)
        validation = extractor.extract(encoder, held_out, representation, "linear: images that choose the learning rate")
        validation = _numbered(validation, features)
    folder = None
    if extractor.cache:
        entry = extractor.cache.entry(encoder, extractor.processor, training, representation, extractor.config, config)
        folder = entry.folder
    state = ProbeState(folder, extractor.accelerator)
    return train_classifiers(extractor.accelerator, features, validation, test, features.num_classes, config, state)


def cached_probe(
    accelerator: Accelerator, splits: Splits, config: LinearConfig, stop: Callable[[], bool] = lambda: False
) -> LinearResult | None:
    """A linear probe on features that are there already; errors as of `linear_probe`.

    Args:
        stop: whether this process is to stop.
    Returns:
        None if a process is to stop.
    """
    train, test = splits
    held_out = round(config.validation_fraction * len(train))
    if not held_out < len(train) or (config.validation_fraction and not held_out):
        raise UserError(
            f"{len(train)} training images are too few to hold out {config.validation_fraction:g} of them for validation"
        )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed))
    chosen, rest = order[:held_out], order[held_out:]
    validation = replace(train, features=train.features[chosen], labels=train.labels[chosen]) if held_out else None
    device = accelerator.device
    features = CachedFeatures(train.features[rest].to(device), train.labels[rest].to(device), config)
    state = ProbeState(None, accelerator)
    return train_classifiers(accelerator, features, validation, test, int(train.labels.max()) + 1, config, state, stop)


def train_classifiers(
    accelerator: Accelerator,
    training: TrainingFeatures,
    validation: FeatureSet | None,
    test: FeatureSet,
    classes: int,
    config: LinearConfig,
    state: ProbeState,
    stop: Callable[[], bool] = lambda: False,
) -> LinearResult | None:
    """Train the classifiers of all learning rates, each process those of some, and choose one.

    Args:
        validation: features that choose; None where there is one learning rate.
        test: features to classify.
        classes: number of classes of the training split.
        state: from which an interrupted training continues.
        stop: whether this process is to stop.
    Returns:
        None if a process is to stop.
    """
    rank, processes, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    own = config.learning_rates[rank::processes]
    classifiers = LinearClassifiers(test.features.shape[1], classes, config, own).to(device)
    if config.normalize == "standardize":
        classifiers.standardize(training.features)
    optimizer = classifiers.make_optimizer() if own else None
    judges = [None if split is None else (split.features.to(device), split.labels.to(device)) for split in (validation, test)]
    epoch, best_on_test = _restore(state.load(), classifiers, optimizer, training)
    bar = ProgressBar(total=config.epochs, initial=epoch, desc="linear probe", unit="epoch", leave=False, disable=rank != 0)
    while epoch < config.epochs and not stop():
        classifiers.train()
        for number, (features, labels) in enumerate(training.epoch()):
            if own:
                classifiers.step(optimizer, features, labels, epoch + number / training.steps_per_epoch)
        if own:
            best_on_test = max(best_on_test, classifiers.accuracies(*judges[1]).max().item())
        epoch += 1
        bar.update()
        state.save({
            "epoch": epoch, "best_on_test": best_on_test, "classifiers": classifiers.state_dict(),
            "optimizer": optimizer and optimizer.state_dict(), "training": training.state_dict(),
        })  # fmt: skip
    bar.close()
    if any_process(accelerator, epoch < config.epochs):
        return None
    state.remove()
    return _chosen(accelerator, classifiers, judges[0], test, config, best_on_test)


def _restore(
    state: dict, classifiers: LinearClassifiers, optimizer: torch.optim.Optimizer | None, training: TrainingFeatures
) -> tuple[int, float]:
    """Finished epochs, and the best accuracy on the test images so far."""
    if not state:
        return 0, 0.0
    classifiers.load_state_dict(state["classifiers"])
    if optimizer is not None:
        optimizer.load_state_dict(state["optimizer"])
    training.load_state_dict(state["training"])
    return state["epoch"], state["best_on_test"]


def _chosen(
    accelerator: Accelerator,
    classifiers: LinearClassifiers,
    validation: tuple[Tensor, Tensor] | None,
    test: FeatureSet,
    config: LinearConfig,
    best_on_test: float,
) -> LinearResult:
    """The result of the best classifier of all processes."""
    own = classifiers.rates
    accuracies = [0.0] * len(own) if validation is None or not own else classifiers.accuracies(*validation).tolist()
    by_rate = dict(zip(gather_object(list(own)), gather_object(accuracies), strict=True))
    best = max(config.learning_rates, key=lambda rate: by_rate[rate])
    ranked = [None]
    if best in own:
        with torch.no_grad():
            head = classifiers.eval().heads[own.index(best)]
            probabilities = head(classifiers.norm(test.features.to(accelerator.device))).softmax(1)
        ranked = [
            tuple(values.cpu() for values in rank_classes(probabilities, torch.ones(len(test), device=probabilities.device)))
        ]
    ranking, confidence = next(values for values in gather_object(ranked) if values is not None)
    settings = {"learning_rate": best}
    if validation is not None:
        settings["validation_top1"] = by_rate[best]
    return LinearResult(Classification(ranking, confidence, test.labels), settings, max(gather_object([best_on_test])), test)


def _numbered(split: FeatureSet, training: AugmentedFeatures) -> FeatureSet:
    """The split with the numbers that the training has given to its classes."""
    _, labels, classes = align_labels((training.labels, training.classes), (split.labels, split.classes))
    return replace(split, labels=labels, classes=classes)
