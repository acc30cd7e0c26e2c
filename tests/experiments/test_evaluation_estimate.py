"""What an evaluation takes is counted from its recipe and measured on a few images."""

import pytest

from hssl_hf.cli.main import main
from hssl_hf.config.evaluation_recipe import load_evaluation_recipe
from hssl_hf.config.recipe_files import EVALUATIONS, recipes
from hssl_hf.evaluation.encoder import load_encoder
from hssl_hf.evaluation.extraction import Extractor
from hssl_hf.evaluation.feature_cache import FeatureCache
from hssl_hf.experiments.evaluation_estimate import GIB, EvaluationEstimate, estimate_evaluation
from hssl_hf.publish.export import export_backbone
from tests.conftest import SAMPLE, TINY_VIT, tiny_model
from tests.evaluation.extractors import accelerator


@pytest.fixture
def loaded(tmp_path, unchecked):
    return load_encoder(export_backbone(tiny_model(backbone_kwargs={**TINY_VIT, "depth": 4}), tmp_path / "export"))


@pytest.mark.parametrize("name", recipes(EVALUATIONS))
def test_every_recipe_is_estimated(name, loaded, tmp_path):
    """On the 10,000 training and 2,000 test images of the sample, of 10 classes; the encoder has 64 channels."""
    changed = [f"data.path={SAMPLE}", "data.test_split=test", "extraction.batch_size=16", "extraction.num_workers=0"]
    recipe = load_evaluation_recipe(None, recipes(EVALUATIONS)[name], changed)
    runner = Extractor(accelerator(), loaded[1], recipe.extraction, FeatureCache(1.0, tmp_path / "cache"))
    result = estimate_evaluation(recipe, runner, loaded[0])
    width = 64 * recipe.representation.blocks * (2 if recipe.representation.features == "cls_and_patches" else 1)
    epochs, held_out = recipe.linear.epochs, round(10_000 * recipe.linear.validation_fraction)
    is_augmented = recipe.protocol == "linear" and recipe.linear.augment
    assert result.passes == (epochs * (10_000 - held_out) + held_out + 2_000 if is_augmented else 12_000)
    assert result.cache_gib == pytest.approx((held_out + 2_000 if is_augmented else 12_000) * width * 4 / GIB)
    weights = len(recipe.linear.learning_rates) * (width + 1) * 10 if recipe.protocol == "linear" else 0
    assert result.classifiers_gib == pytest.approx(3 * 4 * weights / GIB)
    assert result.encoded_per_second > 0 and result.decoded_per_second > 0


def test_the_slower_of_encoder_and_decoding_counts():
    values = {"train_images": 10, "test_images": 5, "passes": 7200, "cache_gib": 0.0, "classifiers_gib": 0.0}
    result = EvaluationEstimate(**values, encoded_per_second=2.0, decoded_per_second=8.0)
    assert result.hours == 1.0 and "1.00 h, limited by the encoder" in result.table()
    assert "limited by decoding" in EvaluationEstimate(**values, encoded_per_second=8.0, decoded_per_second=2.0).table()


def test_through_the_command_line(tmp_path, unchecked, capsys):
    folder = export_backbone(tiny_model(), tmp_path / "export")
    command = ["evaluate", str(folder), "linear", "linear_siamese_im", f"data.path={SAMPLE}", "data.test_split=test"]
    assert main([*command, "extraction.batch_size=16", "extraction.num_workers=0", "--estimate"]) == 0
    assert "10000 to train, 2000 to test" in capsys.readouterr().out
