"""A study: variants that differ from one recipe in a few values, each with the same seeds and measurements.

Variants of a seed start from the same base and see the same images in the same order and crops, so that they can be compared
pair by pair. Every finished run is measured once, with the network that its method exports; tables and plots read nothing but
these records.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated

import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file, save
from torch import Tensor

from hssl_hf.config.recipe import Recipe, RecipeError, load_recipe
from hssl_hf.config.strict_yaml import build, read_yaml
from hssl_hf.data.files import write_below
from hssl_hf.engine.distributed import make_accelerator
from hssl_hf.evaluation.encoder import raw_pixel_encoder
from hssl_hf.evaluation.extraction import ExtractionConfig, Extractor
from hssl_hf.evaluation.features import Representation
from hssl_hf.evaluation.knn import knn_scores
from hssl_hf.evaluation.metrics import Discrepancy, SolvedIoU, SolvedSamples, accuracy
from hssl_hf.evaluation.records import PIXELS, read_records
from hssl_hf.evaluation.splits import Splits, extract_splits, split_record
from hssl_hf.experiments.head_search import RANKING
from hssl_hf.fields import Distinct, Length, PositiveFraction, Section, Seed
from hssl_hf.models.configuration_hssl import HSSLConfig
from hssl_hf.models.modeling_hssl import HSSLForPreTraining
from hssl_hf.modules.projection_heads import prototype_logits
from hssl_hf.runs.run_directory import RunDirectory, image_processor_for

UNTRAINED = "untrained base"
PREDICTIONS = "predictions.safetensors"  # classes of the test images by base and head, in the folder of a run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Study(Section):
    """The recipe, its variants and the seeds.

    Args:
        recipe: path relative to the study's file.
        baseline: the variant that the others are compared with.
        variants: values that replace the recipe's, `a.b=c`, by the name of the variant.
        seeds: of all variants.
        heads: variants whose order is compared with that of the searches, and what these search among; none for all families.
        searches: for the head, fractions of the images by the name of the search.
    """

    recipe: str
    baseline: str
    variants: dict[str, tuple[str, ...]]
    seeds: Annotated[tuple[Seed, ...], Length(1, 1000), Distinct()] = (0, 1, 2)
    heads: Annotated[tuple[str, ...], Distinct()] = ()
    searches: dict[str, PositiveFraction] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Study":
        """
        Raises:
            RecipeError: for what cannot be read, unknown keys, and variants that are named but not described.
        """
        study = build(cls, read_yaml(path))
        if unknown := {study.baseline, *study.heads} - study.variants.keys():
            raise RecipeError(f"{path}: {sorted(unknown)} are not among the variants {list(study.variants)}")
        if twice := study.searches.keys() & study.variants.keys():
            raise RecipeError(f"{path}: {sorted(twice)} are used both as variants and as searches")
        return study

    def runs(self) -> list[tuple[str, int]]:
        """Every variant with every seed, seed by seed, so that a study that is cut short can still be compared."""
        return [(variant, seed) for seed in self.seeds for variant in (*self.variants, *self.searches)]

    def overrides(self, variant: str, seed: int) -> list[str]:
        return [*self.variants.get(variant, []), f"seed={seed}"]


@dataclass(frozen=True)
class Value:
    """One measured value, before its subject is known."""

    metric: str
    value: float
    unit: str = "percent"
    settings: dict = field(default_factory=dict)


class Measurement:
    """Measures runs on labeled images, which are decoded once.

    Args:
        recipe: whose probe names the images.
        results: file of the records.
    """

    def __init__(self, recipe: Recipe, results: Path):
        self.recipe, self.results = recipe, results
        accelerator = make_accelerator(False, 1, 1)
        self.extractor = Extractor(accelerator, image_processor_for(recipe), ExtractionConfig())
        self.used = {"num_neighbors": recipe.probe.num_neighbors, "temperature": recipe.probe.temperature}

    def done(self) -> set[tuple[str, int]]:
        """Subjects and seeds that have been measured; the k-NN accuracy is the last record of a subject."""
        last = {"knn_top1", "search_discrepancy"}
        return {(line["subject"], line["seed"]) for line in read_records(self.results) if line["metric"] in last}

    def measure(self, variant: str, seed: int, folder: Path) -> None:
        """Records of one finished run or search; the classes that a run predicts are kept in its folder."""
        if (folder / RANKING).is_file():
            ranking = json.loads((folder / RANKING).read_text())
            values = [Value("search_discrepancy", c["discrepancy"], "nats", {"head": c["family"]}) for c in ranking]
        else:
            run = RunDirectory.open(folder)
            manifest = json.loads((folder / "manifest.json").read_text())
            seconds = Value("training_seconds", manifest["seconds"], "seconds", {"images": manifest["images_seen"]})
            predictions, values = self._evaluate(run.model, run.recipe.optim.teacher_temperature[1])
            write_below(folder, PREDICTIONS, save(predictions))
            values = [seconds, *values]
        self._record(values, variant, seed)

    def compare(self, study: Study, seed: int, folder_of: Callable[[str, int], Path]) -> list[str]:
        """Records of N_s and sIoU, which compare base and head of a variant with the base of the baseline and the same seed.

        Args:
            folder_of: folder of the run of a variant and a seed.
        Returns:
            the measured variants with a head that lack these records, because a run or its predictions are missing.
        """
        lines = [line for line in read_records(self.results) if line["seed"] == seed]
        with_head, compared = (
            {line["subject"] for line in lines if line["metric"] == m} for m in ("knn_top1_auxiliary", "N_s")
        )
        missing, baseline = [], folder_of(study.baseline, seed) / PREDICTIONS
        for variant in [name for name in study.variants if name in with_head - compared]:
            predictions = folder_of(variant, seed) / PREDICTIONS
            if predictions.exists() and baseline.exists():
                solved = self._solved(load_file(baseline)["base"], **load_file(predictions))
                self._record(solved, variant, seed)
            else:
                missing.append(variant)
        return missing

    def _solved(self, baseline: Tensor, base: Tensor, auxiliary: Tensor) -> Iterator[Value]:
        """N_s and sIoU of predicted classes."""
        inputs = {"baseline": baseline, "auxiliary": auxiliary, "references": self.splits.test.labels}
        yield Value("N_s", SolvedSamples(keep_in_memory=True).compute(**inputs)["N_s"], "images")
        overlap = SolvedIoU(keep_in_memory=True).compute(base=base, **inputs)["sIoU"]
        if overlap is None:
            logger.warning("sIoU is not defined, since the base solves no image that the baseline does not; no record of it")
        else:
            yield Value("sIoU", overlap, "fraction")

    def measure_references(self, seed: int) -> None:
        """The untrained base, and the pixels themselves."""
        if (UNTRAINED, seed) not in self.done():
            set_seed(seed)
            self._record(self._evaluate(HSSLForPreTraining(self.recipe.model_config()), None)[1], UNTRAINED, seed)
        if (PIXELS, 0) not in self.done():
            predictions = self._classify(*(split.features for split in self.splits))
            self._record([Value("knn_top1", accuracy(predictions, self.splits.test.labels))], PIXELS, 0)

    @cached_property
    def splits(self) -> Splits:
        """Normalized pixels (n, C·H·W) and labels (n,) of training and test images."""
        return extract_splits(self.extractor, raw_pixel_encoder, self.recipe.probe, Representation(), "images")

    def _encode(self, network) -> list[dict[str, Tensor]]:
        """Class tokens of training and test images by the branches of a network."""
        size = self.recipe.views.global_crop_size
        return [_encode(network, split.features.unflatten(1, (-1, size, size))) for split in self.splits]

    def _evaluate(self, model: HSSLForPreTraining, temperature: float | None) -> tuple[dict[str, Tensor], list[Value]]:
        """Predicted classes of the test images by branch, and values of one model; of its head only at a temperature."""
        network = model.get_network().eval()
        train, test = self._encode(network)
        labels, values = self.splits.test.labels, []
        predictions = {name: self._classify(train[name], test[name]) for name in train}
        if temperature is not None and "auxiliary" in predictions:
            values.append(Value("knn_top1_auxiliary", accuracy(predictions["auxiliary"], labels)))
            if outputs := _outputs(network, test):
                value = Discrepancy(keep_in_memory=True).compute(**outputs, temperature=temperature)["D"]
                values.append(Value("discrepancy", value, "nats", {"temperature": temperature, "centered": True}))
        return predictions, [*values, Value("knn_top1", accuracy(predictions["base"], labels))]

    def _classify(self, train: Tensor, test: Tensor) -> Tensor:
        """(m,) predicted classes."""
        return knn_scores(train, self.splits.train.labels, test, **self.used).argmax(1)

    def _record(self, values: Iterable[Value], subject: str, seed: int) -> None:
        """Write the records of one subject at once, when all are measured."""
        values, probe = list(values), self.recipe.probe
        n = len(self.splits.test)
        for value in values:
            used = (probe, probe.representation, {**self.used, **value.settings}, subject, seed)
            split_record(value.metric, value.value, n, *used, unit=value.unit).append_to(self.results)


@torch.inference_mode()
def _encode(network, pixels: Tensor) -> dict[str, Tensor]:
    """Class tokens (n, C) of base and, where there is one, auxiliary head."""
    chunks = [
        {name: tokens.cls[0] for name, tokens in network(chunk[None])._asdict().items() if tokens is not None}
        for chunk in pixels.split(512)
    ]
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


@torch.inference_mode()
def _outputs(network, features: dict[str, Tensor]) -> dict | None:
    """The prototypes that both branches assign; None where there are none, or a branch has no projection."""
    heads = network.heads
    if not hasattr(heads, "prototypes") or not all(heads.has(name) for name in features):
        return None
    base, auxiliary = (prototype_logits(heads.project(name, features[name]), heads.prototypes()) for name in features)
    return {"predictions": base, "references": auxiliary}


def study_recipe(path: Path, study: Study, overrides: list[str]) -> Recipe:
    """The recipe that the variants of a study change.

    Raises:
        RecipeError: if it is of another method than HSSL, or has no labeled images to measure on.
    """
    recipe = load_recipe(path.parent / study.recipe, overrides)
    if recipe.model_type() != HSSLConfig.model_type:
        raise RecipeError(f"a study compares variants of HSSL, got model.model_type={recipe.model_type()!r} in {study.recipe}")
    if recipe.probe.path is None:
        raise RecipeError(f"{study.recipe} names no labeled images; set probe.path")
    return recipe
