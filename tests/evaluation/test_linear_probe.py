"""Linear probes on images: with random crops in every epoch, or on features that are computed once."""

import pytest
import torch

from hssl_hf.config.evaluation_recipe import load_evaluation_recipe
from hssl_hf.config.recipe_files import EVALUATIONS, recipes
from hssl_hf.evaluation.augmented_features import AugmentedFeatures, crops_of
from hssl_hf.evaluation.encoder import load_encoder, raw_pixel_encoder
from hssl_hf.evaluation.extraction import ExtractionConfig, Extractor
from hssl_hf.evaluation.feature_cache import FeatureCache
from hssl_hf.evaluation.features import Representation
from hssl_hf.evaluation.linear import LinearConfig
from hssl_hf.evaluation.linear_probe import cached_probe, linear_probe
from hssl_hf.evaluation.probe_state import ProbeState
from hssl_hf.evaluation.splits import LabeledData, extract_splits
from hssl_hf.publish.export import export_backbone
from tests.conftest import SAMPLE, TINY_VIT, tiny_model
from tests.evaluation.extractors import accelerator, extractor, processor
from tests.faults import refused

DATA = LabeledData(path=str(SAMPLE), train_images=600, test_images=100)
CROPS = LinearConfig(
    augment=True, normalize="batch_norm", epochs=4, batch_size=64, learning_rates=(0.01, 1.0), crop_scale=(0.8, 1)
)


def test_a_probe_on_random_crops_learns():
    result = linear_probe(extractor(28), raw_pixel_encoder, DATA, Representation(), CROPS)
    assert len(result.classification) == 100 and 55 < result.classification.accuracy() <= result.best_on_test
    assert result.settings["learning_rate"] in CROPS.learning_rates and 45 < result.settings["validation_top1"] < 95


def test_a_probe_stops_between_two_epochs():
    splits = extract_splits(extractor(28), raw_pixel_encoder, DATA, Representation(), "linear")
    asked = []
    assert cached_probe(accelerator(), splits, LinearConfig(epochs=5), lambda: asked.append(1) or len(asked) > 2) is None
    assert len(asked) == 3
    assert cached_probe(accelerator(), splits, LinearConfig(epochs=5)) is not None


def test_images_that_choose_the_rate_train_nothing():
    """Gray images of different values, of which the crops show who is in a batch."""
    training, _ = DATA.splits(processor(28))
    config = LinearConfig(
        augment=True, normalize="none", batch_size=30, learning_rates=(0.1, 1.0), validation_fraction=0.25, crop_scale=(1, 1)
    )
    features = AugmentedFeatures(extractor(28), raw_pixel_encoder, training, Representation(), config)
    sums = {}
    for name, images in (("all", training), ("held out", training.held_out(0.25))):
        pixels = extractor(28).extract(raw_pixel_encoder, images, Representation()).features
        sums[name] = {round(value, 1) for value in pixels.sum(1).tolist()}
    assert 0.15 * 600 < len(sums["held out"]) < 0.35 * 600
    seen = {round(value, 1) for _ in range(2) for batch, _ in features.epoch() for value in batch.sum(1).tolist()}
    assert len(seen - sums["all"]) < 0.1 * len(seen) and len(seen & sums["held out"]) < 0.05 * len(sums["held out"])
    assert len(seen) > 0.9 * 0.65 * 600


def test_crops_are_those_of_the_image_processor():
    views = crops_of(processor(32), (0.08, 1.0))
    assert views.global_crop_size == 32 and views.global_crop_scale == (0.08, 1.0) and views.num_local_crops == 0
    assert views.global_crop_blur == (0.0,) and views.gray_probability == 0 and views.jitter.probability == 0
    assert views.flip_probability == 0.5 and views.mean == tuple(processor(32).image_mean)


@pytest.mark.parametrize("name", [name for name in recipes(EVALUATIONS) if name.startswith("linear")])
def test_every_recipe_runs_two_steps(name, tmp_path, unchecked):
    """With nothing but batch, epochs and images of the recipe changed."""
    folder = export_backbone(tiny_model(backbone_kwargs={**TINY_VIT, "depth": 4}), tmp_path / "export")
    changed = ["linear.batch_size=16", "linear.epochs=1", "linear.warmup_epochs=0", "extraction.num_workers=0"]
    data = [
        f"data.path={SAMPLE}",
        "data.test_split=test",
        "data.train_images=40",
        "data.test_images=10",
        "extraction.cache=false",
    ]
    recipe = load_evaluation_recipe("linear", recipes(EVALUATIONS)[name], [*changed, *data])
    if recipe.linear.validation_fraction == 0.01:
        recipe = load_evaluation_recipe(
            "linear", recipes(EVALUATIONS)[name], [*changed, *data, "linear.validation_fraction=0.2"]
        )
    encoder, prepared = load_encoder(folder)
    runner = Extractor(accelerator(), prepared, ExtractionConfig(num_workers=0, cache=False))
    result = linear_probe(runner, encoder, recipe.data, recipe.representation, recipe.linear)
    assert 0 <= result.classification.accuracy() <= result.best_on_test <= 100 and len(result.classification) == 10


@pytest.mark.fault("recipes of evaluations")
def test_what_cannot_be_trained_on():
    with refused("fewer than linear.batch_size=1024"):
        linear_probe(extractor(28), raw_pixel_encoder, DATA, Representation(), LinearConfig(augment=True, normalize="none"))


def test_limits_hold_for_random_crops_too():
    """Of the first 40 images alone, whatever the number of shards."""
    data = LabeledData(path=str(SAMPLE), train_images=40, test_images=10)
    config = LinearConfig(augment=True, normalize="none", batch_size=20, learning_rates=(1.0,), validation_fraction=0.0)
    training, _ = data.splits(processor(28))
    features = AugmentedFeatures(extractor(28), raw_pixel_encoder, training, Representation(), config)
    expected = torch.tensor([sample.label for sample in training.samples()])
    for _ in range(2):
        labels = torch.cat([labels for _, labels in features.epoch()])
        assert features.steps_per_epoch == 2 and torch.equal(labels.sort().values, expected.sort().values)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_interrupted_probe_continues_to_the_same_bits(workers, tmp_path, monkeypatch):
    """Interrupted in its third epoch, it repeats this one, and classifies as one that was not interrupted."""
    config = LinearConfig(
        augment=True, normalize="batch_norm", epochs=4, batch_size=50, learning_rates=(0.1, 1.0), optimizer="lars"
    )
    data = LabeledData(path=str(SAMPLE), train_images=200, test_images=50)

    def probe(name: str):
        runner = extractor(28, FeatureCache(1.0, tmp_path / name), num_workers=workers)
        return linear_probe(runner, raw_pixel_encoder, data, Representation(), config)

    expected, epochs, plain = probe("at once"), [], AugmentedFeatures.epoch

    def interrupted(self):
        epochs.append(1)
        if len(epochs) == 3:
            raise KeyboardInterrupt
        yield from plain(self)

    monkeypatch.setattr(AugmentedFeatures, "epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        probe("interrupted")
    result = probe("interrupted")
    assert len(epochs) == 5 and result.settings == expected.settings and result.best_on_test == expected.best_on_test
    assert torch.equal(result.classification.confidence, expected.classification.confidence)
    assert not list((tmp_path / "interrupted").rglob("*.pt")), "nothing is left of a finished probe"


@pytest.mark.fault("cache")
def test_a_damaged_state_starts_again(tmp_path, caplog):
    state = ProbeState(tmp_path, accelerator())
    state.save({"epoch": 3})
    assert state.load() == {"epoch": 3}
    state.path.write_bytes(b"damaged")
    assert state.load() == {} and "damaged" in caplog.text
    state.remove()
    assert not tmp_path.exists()
