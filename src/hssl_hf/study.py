"""A study: arms that differ from one recipe in a few values, each with the same seeds, measured alike.

Arms of a seed start from the same base and see the same images in the same order and crops, so that they can be compared pair
by pair. Every finished run is measured once, with the network that its method keeps; the records are all that tables and plots
read.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
import yaml
from accelerate.utils import set_seed
from torch import Tensor
from tqdm.auto import tqdm

from hssl_hf.discrepancy import ComplementarySamples, Discrepancy, SuccessIoU
from hssl_hf.evaluate.knn import knn_scores
from hssl_hf.heads import similarity
from hssl_hf.modeling_hssl import HSSLForPreTraining
from hssl_hf.probe import Probe
from hssl_hf.recipe import Recipe, RecipeError, load_recipe
from hssl_hf.run_folder import RunFolder, processor_of, read_lines
from hssl_hf.search import RANKING
from hssl_hf.strict_yaml import build

SEARCH = "search"
UNTRAINED, PIXELS = "untrained base", "raw pixels"


@dataclass(frozen=True)
class SearchArm:
    """A search for the head within the study.

    Args:
        share: of the images.
        depth: blocks of every candidate.
    """

    share: float = 0.1
    depth: int = 1


@dataclass(frozen=True)
class Study:
    """What is compared.

    Args:
        recipe: path relative to the study's file.
        baseline: the arm that the others are compared with.
        arms: values that replace the recipe's, `a.b=c`, by the name of the arm.
        seeds: of all arms.
        heads: arms whose order is compared with that of the search.
        search: None for no search.
    """

    recipe: str
    baseline: str
    arms: dict
    seeds: tuple[int, ...] = (0, 1, 2)
    heads: tuple[str, ...] = ()
    search: SearchArm | None = field(default_factory=SearchArm)

    @classmethod
    def read(cls, path: Path) -> "Study":
        """
        Raises:
            RecipeError: for what cannot be read, unknown keys, and arms that are named but not described.
        """
        try:
            tree = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise RecipeError(f"cannot read the study {path}: {error}") from error
        study = build(cls, tree, "")
        unknown = {study.baseline, *study.heads} - study.arms.keys()
        if unknown:
            raise RecipeError(f"{path}: {sorted(unknown)} are not among the arms {list(study.arms)}")
        return study

    def runs(self) -> Iterator[tuple[str, int]]:
        """Every arm with every seed, seed by seed, so that a study that is cut short can still be compared."""
        for seed in self.seeds:
            for arm in self.arms:
                yield arm, seed
            if self.search is not None:
                yield SEARCH, seed

    def overrides(self, arm: str, seed: int) -> list[str]:
        return [*self.arms.get(arm, []), f"seed={seed}"]


class Measurement:
    """Measures runs on labelled images, which are decoded once.

    Args:
        recipe: whose probe names the images.
        results: file of the records.
    """

    def __init__(self, recipe: Recipe, results: Path):
        self.recipe, self.results = recipe, results
        self.processor = processor_of(recipe)
        self.probe = Probe(recipe.probe, self.processor)

    def done(self) -> set[tuple[str, int]]:
        """Subjects and seeds that have been measured; the k-NN accuracy is the last record of a subject."""
        last = {"knn_top1", "search_discrepancy"}
        return {(line["subject"], line["seed"]) for line in read_lines(self.results) if line["metric"] in last}

    def measure(self, arm: str, seed: int, folder: Path) -> None:
        """Records of one finished run."""
        if arm == SEARCH:
            for place in json.loads((folder / RANKING).read_text()):
                self._note("search_discrepancy", place["discrepancy"], "nats", SEARCH, seed, {"head": place["family"]})
            return
        run = RunFolder.open(folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        self._note("training_seconds", manifest["seconds"], "seconds", arm, seed, {"images": manifest["images_seen"]})
        temperature = run.recipe.optim.teacher_temperature[1]
        self._measure_model(run.model, arm, seed, temperature)

    def measure_references(self, seed: int) -> None:
        """The untrained base, and the pixels themselves."""
        if (UNTRAINED, seed) not in self.done():
            set_seed(seed)
            self._measure_model(HSSLForPreTraining(self.recipe.model_config()), UNTRAINED, seed, None)
        if (PIXELS, 0) not in self.done():
            bank, queries = (pixels.flatten(1) for pixels, _ in self.images)
            self._note("knn_top1", self._accuracy(self._classify(bank, queries)), "percent", PIXELS, 0)

    @cached_property
    def images(self) -> list[tuple[Tensor, Tensor]]:
        """(n, 3, H, W) normalised pixels and (n,) labels of bank and queries."""
        found = []
        for split in self.probe.splits():
            pixels, labels, part = [], [], []
            for image, label in tqdm(split, desc=f"images of {split.source.split}", unit="img", leave=False):
                part.append(image)
                labels.append(label)
                if len(part) == 512:
                    pixels.append(self.processor(part, return_tensors="pt")["pixel_values"])
                    part = []
            if part:
                pixels.append(self.processor(part, return_tensors="pt")["pixel_values"])
            found.append((torch.cat(pixels), torch.tensor(labels)))
        return found

    def _measure_model(self, model: HSSLForPreTraining, subject: str, seed: int, temperature: float | None) -> None:
        network = model.network().eval()
        (bank, _), (queries, labels) = self.images
        features = [_encode(network, pixels) for pixels in (bank, queries)]
        found = {name: self._classify(*(each[name] for each in features)) for name in features[0]}
        if temperature is not None and "auxiliary" in found:
            self._note("knn_top1_auxiliary", self._accuracy(found["auxiliary"]), "percent", subject, seed)
            inputs = {"predictions": found["base"], "auxiliary": found["auxiliary"], "references": labels}
            inputs = {name: value.numpy() for name, value in inputs.items()}
            apart = ComplementarySamples(keep_in_memory=True).compute(**inputs)["N_s"]
            self._note("N_s", apart, "images", subject, seed)
            self._note("sIoU", SuccessIoU(keep_in_memory=True).compute(**inputs)["sIoU"], "share", subject, seed)
            outputs = _outputs(network, features[1])
            if outputs is not None:
                found_d = Discrepancy(keep_in_memory=True).compute(**outputs, temperature=temperature)["D"]
                self._note("discrepancy", found_d, "nats", subject, seed, {"temperature": temperature, "centred": True})
        self._note("knn_top1", self._accuracy(found["base"]), "percent", subject, seed)

    def _classify(self, bank: Tensor, queries: Tensor) -> Tensor:
        """(m,) predicted classes."""
        config = self.recipe.probe
        return knn_scores(bank, self.images[0][1], queries, config.neighbours, config.temperature).argmax(1)

    def _accuracy(self, predicted: Tensor) -> float:
        return 100 * (predicted == self.images[1][1]).float().mean().item()

    def _note(self, metric: str, value: float, unit: str, subject: str, seed: int, settings: dict | None = None) -> None:
        settings = {**self.probe.knn_settings(), **(settings or {})}
        self.probe.record(metric, value, len(self.images[1][1]), settings, subject, seed, self.results, unit)


@torch.inference_mode()
def _encode(network, pixels: Tensor) -> dict[str, Tensor]:
    """Class tokens (n, C) of base and, where there is one, auxiliary head."""
    found: dict[str, list[Tensor]] = {}
    for part in pixels.split(512):
        branches = network(part[None])
        for name, tokens in branches._asdict().items():
            if tokens is not None:
                found.setdefault(name, []).append(tokens.cls[0])
    return {name: torch.cat(parts) for name, parts in found.items()}


@torch.inference_mode()
def _outputs(network, features: dict[str, Tensor]) -> dict | None:
    """What both branches say of the prototypes; None where there are none, or a branch has no projection."""
    heads = network.heads
    if not hasattr(heads, "prototypes") or not all(heads.has(name) for name in features):
        return None
    base, auxiliary = (similarity(heads.project(name, features[name]), heads.prototypes()).numpy() for name in features)
    return {"predictions": base, "references": auxiliary}


def study_recipe(path: Path, study: Study, overrides: list[str]) -> Recipe:
    """The recipe that the arms of a study change.

    Raises:
        RecipeError: if it is of another method than HSSL, or has no labelled images to measure on.
    """
    recipe = load_recipe(path.parent / study.recipe, overrides)
    if recipe.model.get("model_type", "hssl") != "hssl":
        raise RecipeError(
            f"a study compares arms of HSSL, got model.model_type={recipe.model['model_type']!r} in {study.recipe}"
        )
    if recipe.probe.path is None:
        raise RecipeError(f"{study.recipe} names no labelled images; set probe.path")
    return recipe
