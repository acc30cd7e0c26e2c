"""A study from its file to its records: every variant with every seed, measured once, resumed where it stopped."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from hssl_hf.config.recipe import RecipeError, load_recipe
from hssl_hf.errors import UserError
from hssl_hf.evaluation.splits import Splits
from hssl_hf.experiments.study import PIXELS, PREDICTIONS, UNTRAINED, Measurement, Study, Value, study_recipe
from hssl_hf.experiments.study_runner import run
from hssl_hf.models.modeling_hssl import HSSLForPreTraining
from tests.conftest import ROOT, SAMPLE
from tests.evaluation.feature_sets import feature_set
from tests.launches import TINY

CIFAR10 = ROOT / "training" / "studies" / "cifar10.yaml"


def write(folder, text: str):
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def test_variants_go_seed_by_seed_with_their_own_values():
    study = Study.read(CIFAR10)
    runs = study.runs()
    assert len(runs) == 3 * (len(study.variants) + 2) and runs[len(study.variants)] == ("search", 0)
    assert len({seed for _, seed in runs[: len(study.variants)]}) == 1
    assert study.overrides("vit", 2) == ["model.auxiliary=vit", "seed=2"] and study.overrides("search", 1) == ["seed=1"]


def test_variants_of_a_seed_start_from_one_base():
    """Whatever differs in head, depth, shortcut and arrows: base and its projection are the same tensors."""
    study = Study.read(CIFAR10)
    states = []
    for variant in study.variants:
        recipe = load_recipe(CIFAR10.parent / study.recipe, study.overrides(variant, 1))
        torch.manual_seed(recipe.seed)
        states.append(HSSLForPreTraining(recipe.model_config()).student.base.state_dict())
    assert all(torch.equal(value, state[name]) for state in states for name, value in states[0].items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: a.yaml\nbaseline: x\nvariants: {y: []}", r"\['x'\] are not among the variants"),
        ("recipe: a.yaml\nbaseline: y\nvariants: {y: []}\nheads: [z]", r"\['z'\] are not among the variants"),
        (
            "recipe: a.yaml\nbaseline: y\nvariants: {y: []}\nsearches: {y: 0.1}",
            r"\['y'\] are used both as variants and as searches",
        ),
        ("recipe: a.yaml\nbaseline: y\nvariant: {y: []}", "Did you mean 'variants'"),
        ("recipe: [", "not valid YAML"),
    ],
)
def test_inconsistent_studies_are_refused(tmp_path, text, message):
    with pytest.raises(RecipeError, match=message):
        Study.read(write(tmp_path, text))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.model_type=hssl_mae", "compares variants of HSSL, got model.model_type='hssl_mae'"),
        ("probe.path=null", "set probe.path"),
    ],
)
def test_recipes_that_cannot_be_studied_are_refused(override, message):
    study = Study(recipe="../recipes/hssl_dino_cifar10.yaml", baseline="a", variants={"a": []})
    dropped = ["model={backbone: vit_tiny_patch16_224}"] if "mae" in override else []
    with pytest.raises(RecipeError, match=message):
        study_recipe(CIFAR10, study, [*dropped, override])


class Fakes:
    """A runner that trains nothing and a measurement that keeps its records in a set."""

    def __init__(self, failing=()):
        self.records, self.trained, self.references, self.failing, self.stopped = set(), [], [], failing, False
        self.compared = []

    def train(self, variant: str, seed: int) -> None:
        if (variant, seed) in self.failing:
            raise UserError(f"{variant} with seed {seed} ended with code 1")
        self.trained.append((variant, seed))

    def measure(self, variant: str, seed: int, folder) -> None:
        assert (variant, seed) in self.trained and folder == f"{variant}-{seed}"
        self.records.add((variant, seed))

    def folder_of(self, variant: str, seed: int) -> str:
        return f"{variant}-{seed}"

    def measure_references(self, seed: int) -> None:
        self.references.append(seed)

    def done(self) -> set:
        return set(self.records)

    def compare(self, study: Study, seed: int, folder_of) -> list[str]:
        assert folder_of(study.baseline, seed) == f"{study.baseline}-{seed}"
        self.compared.append(seed)
        return []

    def stop(self) -> None:
        self.stopped = True


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_study_continues_with_what_has_no_record(jobs):
    """A run that fails ends the study and loses nothing; the next call trains the rest, and nothing twice."""
    study, fakes = Study.read(CIFAR10), Fakes(failing={("resmlp", 1)})
    with pytest.raises(UserError, match="resmlp with seed 1 ended with code 1"):
        run(study, fakes, fakes, jobs)
    assert fakes.stopped and fakes.references == [0, 1, 2] and len(fakes.records) >= 12
    measured, trained = set(fakes.records), len(fakes.trained)
    fakes.failing = ()
    run(study, fakes, fakes, jobs)
    assert fakes.records == set(study.runs()) and fakes.compared[-3:] == [0, 1, 2]
    assert not measured & set(fakes.trained[trained:]), "what has a record is not trained again"


@pytest.mark.slow
def test_through_the_command_line_and_again(tmp_path):
    """Two variants and a search: records of each, paired references, and a second call that trains nothing."""
    tiny = [value for value in TINY if not value.startswith(("probe.", "data.num_workers"))]
    path = write(
        tmp_path,
        f"recipe: {ROOT}/training/recipes/quickstart.yaml\nseeds: [0]\nbaseline: plain\nheads: [vit, resmlp]\n"
        "searches: {search: 0.2}\nvariants:\n  vit: [model.auxiliary=vit]\n  resmlp: [model.auxiliary=resmlp]\n"
        '  plain: [model.auxiliary=null, "model.cls_supervision=[base->base]"]\n',
    )
    results, folder = tmp_path / "records.jsonl", tmp_path / "runs"
    command = [sys.executable, ROOT / "training" / "study.py", path, *tiny, "data.num_workers=0", "optim.epochs=0.1"]
    command += ["model.objective=dino", "model.num_prototypes=32", "probe.train_images=300", "probe.test_images=200"]
    command += ["optim.warmup_epochs=0.01", "--folder", folder, "--results", results]
    for _ in range(2):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:] + "".join(p.read_text()[-2000:] for p in folder.glob("*/train.log"))
        records = [json.loads(line) for line in results.read_text().splitlines()]
        measured = {(record["subject"], record["metric"]) for record in records}
        assert len(measured) == len(records) - 1, "one record of each, but two candidates of one search"
    assert "| vit |" in done.stdout and (folder / "study.png").is_file()
    pair = {"knn_top1", "knn_top1_auxiliary", "N_s", "sIoU", "discrepancy", "training_seconds"}
    assert {metric for subject, metric in measured if subject == "vit"} == pair
    assert {metric for subject, metric in measured if subject == "plain"} == {"knn_top1", "training_seconds"}
    assert {(UNTRAINED, "knn_top1"), (PIXELS, "knn_top1"), ("search", "search_discrepancy")} <= measured
    assert not (folder / "vit-0" / "export").exists()
    assert all(record["dataset"] == SAMPLE.name and record["n"] == 200 for record in records)


def measurement_of(folder, images=None, labels=None) -> Measurement:
    recipe = load_recipe(CIFAR10.parent / "../recipes/hssl_dino_cifar10.yaml", [f"probe.path={SAMPLE}"])
    measurement = Measurement(recipe, folder / "records.jsonl")
    pixels = torch.zeros(len(labels), 1) if images is None else images.flatten(1)
    measurement.__dict__["splits"] = Splits(feature_set(pixels, labels), feature_set(pixels[:30], labels[:30]))
    return measurement


def test_what_is_measured_is_the_pair_of_the_kept_network(tmp_path):
    """A head with the outputs of the base predicts the same classes, without discrepancy."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    images = torch.randn(60, 3, 32, 32, generator=generator) + labels[:, None, None, None]
    measurement = measurement_of(tmp_path, images, labels)
    torch.manual_seed(0)
    model = HSSLForPreTraining(measurement.recipe.model_config())
    model.teacher.auxiliary.register_forward_hook(lambda *_: model.base_tokens)
    model.teacher.base.register_forward_hook(lambda _, __, output: setattr(model, "base_tokens", output[0]))
    model.teacher.heads.projections["auxiliary"].load_state_dict(model.teacher.heads.projections["base"].state_dict())
    predictions, values = measurement._evaluate(model, 0.04)
    values = {value.metric: value.value for value in values}
    assert torch.equal(predictions["base"], predictions["auxiliary"]) and len(predictions["base"]) == 30
    assert values["discrepancy"] == pytest.approx(0, abs=1e-6)
    assert values["knn_top1"] == values["knn_top1_auxiliary"] > 60


def test_variants_are_compared_with_the_baseline_of_their_seed(tmp_path):
    """Of 30 images the baseline solves the first 10 with seed 0 and none with seed 1; the variant is the same both times."""
    labels = torch.arange(30) % 3 + 1
    measurement, wrong = measurement_of(tmp_path, labels=labels), torch.zeros_like(labels)
    study = Study(recipe="a.yaml", baseline="plain", variants={"plain": [], "vit": []}, seeds=(0, 1))

    def folder_of(variant: str, seed: int):
        return tmp_path / f"{variant}-{seed}"

    def keep(variant: str, seed: int, **solved: int) -> None:
        folder_of(variant, seed).mkdir()
        classes = {name: torch.where(torch.arange(30) < count, labels, wrong) for name, count in solved.items()}
        save_file(classes, folder_of(variant, seed) / PREDICTIONS)
        extra = [Value("knn_top1_auxiliary", 50.0)] if "auxiliary" in classes else []
        measurement._record([*extra, Value("knn_top1", 50.0)], variant, seed)

    for seed in (0, 1):
        keep("vit", seed, base=20, auxiliary=15)
    assert measurement.compare(study, 0, folder_of) == ["vit"], "before the baseline there is nothing to compare with"
    keep("plain", 0, base=10)
    keep("plain", 1, base=0)
    for _ in range(2):
        assert [measurement.compare(study, seed, folder_of) for seed in (0, 1)] == [[], []]
    lines = [json.loads(line) for line in measurement.results.read_text().splitlines()]
    values = {(line["metric"], line["seed"]): line["value"] for line in lines if line["metric"] in ("N_s", "sIoU")}
    assert values == {("N_s", 0): 5, ("sIoU", 0): 5 / 10, ("N_s", 1): 15, ("sIoU", 1): 15 / 20}
    assert len(lines) == 6 + 4, "compared once"
    assert all(line["settings"]["num_neighbors"] == 20 for line in lines), "solved is what k-NN with k = 20 gets right"


def test_an_interrupted_measurement_leaves_no_record(tmp_path, monkeypatch):
    """So that the next one does not write the first of them twice."""

    def interrupted(*_):
        yield Value("knn_top1_auxiliary", 40.0)
        raise KeyboardInterrupt

    recipe = load_recipe(CIFAR10.parent / "../recipes/hssl_dino_cifar10.yaml", [f"probe.path={SAMPLE}"])
    measurement = Measurement(recipe, tmp_path / "records.jsonl")
    monkeypatch.setattr(measurement, "_evaluate", lambda *_: (None, interrupted()))
    with pytest.raises(KeyboardInterrupt):
        measurement.measure_references(0)
    assert not (tmp_path / "records.jsonl").exists() and not measurement.done()
