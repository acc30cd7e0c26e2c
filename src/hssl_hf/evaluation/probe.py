"""The probe of a training run: k-NN and a linear probe on labeled images, with the same code as every other evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from accelerate import Accelerator

from hssl_hf.evaluation.classification import Classification
from hssl_hf.evaluation.encoder import Encoder
from hssl_hf.evaluation.extraction import ExtractionConfig, Extractor
from hssl_hf.evaluation.features import Features, Representation
from hssl_hf.evaluation.knn import KNNConfig, knn_accuracy
from hssl_hf.evaluation.linear import LinearConfig
from hssl_hf.evaluation.linear_probe import cached_probe
from hssl_hf.evaluation.splits import LabeledData, extract_splits
from hssl_hf.fields import Images, Range, Temperature


@dataclass(frozen=True)
class ProbeConfig(LabeledData):
    """Labeled images on which the backbone is evaluated periodically, frozen; this never influences the training.

    Args:
        path: None for no probe.
        every_epochs: how often.
        features: as `Representation.features`.
        num_neighbors, temperature: of the weighted k-NN.
        linear: also train a linear classifier, before the first step and after the last, as `hssl-hf evaluate MODEL linear`.
        crop_pct: side of the center crop as a fraction of the resized image's short side.
    Differs: while they train, the recipes of the papers compare with 50,000 training images; the papers' figures are with all
        of them, as `hssl-hf evaluate` computes them.
    """

    every_epochs: Annotated[float, Range(above=0, most=1_000_000)] = 10.0
    features: Features = "cls"
    num_neighbors: Images = 20
    temperature: Temperature = 0.07
    linear: bool = False
    crop_pct: Annotated[float, Range(0.1, 1)] = 0.875

    @property
    def representation(self) -> Representation:
        return Representation(self.features)

    @property
    def knn(self) -> KNNConfig:
        return KNNConfig((self.num_neighbors,), self.temperature)


class Probe:
    """Classifiers on labeled images, by all processes of a run.

    Args:
        config: images and protocol.
        processor: image processor of transformers, the one that is exported.
        accelerator: of the run.
        num_workers: of every process.
        stop: whether this process is to stop.
    """

    def __init__(
        self,
        config: ProbeConfig,
        processor: Callable,
        accelerator: Accelerator,
        num_workers: int = 0,
        stop: Callable[[], bool] = lambda: False,
    ):
        self.config = config
        extraction = ExtractionConfig(num_workers=num_workers)
        self.extractor = Extractor(accelerator, processor, extraction, stop=stop)

    def classify(self, encoder: Encoder | Callable, progress: str, *, linear: bool = False) -> dict[str, Classification] | None:
        """Classes of the test images by k-NN, and by a linear classifier; None if a process is to stop.

        All processes have to call this.
        """
        splits = extract_splits(self.extractor, encoder, self.config, self.config.representation, progress)
        if splits is None:
            return None
        accelerator, number = self.extractor.accelerator, self.config.num_neighbors
        results = {"knn_top1": knn_accuracy(accelerator, *splits, self.config.knn)[number]}
        if linear:
            probe = cached_probe(accelerator, splits, LinearConfig(), self.extractor.stop)
            if probe is None:
                return None
            results["linear_top1"] = probe.classification
        return results
