from pathlib import Path

import pytest
import yaml

from hssl_hf import HSSLForPreTraining
from hssl_hf.plan import Plan
from hssl_hf.recipe import Recipe, RecipeError, differences, load_recipe
from tests.conftest import ROOT

RECIPES = sorted((ROOT / "training" / "recipes").glob("*.yaml"))
TINY = {"vit_small_patch16_224": {"depth": 1}, "vit_base_patch16_224": {"depth": 1}}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses_and_builds(path):
    recipe = load_recipe(path)
    kwargs = {**(recipe.model.get("backbone_kwargs") or {}), **TINY.get(recipe.model["backbone"], {})}
    small = load_recipe(path, [f"model.backbone_kwargs={kwargs}", "model.num_prototypes=16", "model.projection_hidden=32"])
    model = HSSLForPreTraining(small.model_config())
    assert model.config.image_size == recipe.views.global_size
    plan = Plan(recipe, recipe.data.images_per_epoch or 10_000)
    assert plan.steps > 100 and plan.learning_rate(plan.steps - 1) < plan.learning_rate(plan.steps // 2)
    header = path.read_text().splitlines()[0]
    assert header.startswith("# "), "a recipe says in its first line what it is"


def test_paper_recipe_has_the_numbers_of_table_20():
    """HSSL, Table 20 and the released command, ViT-B/16 at batch 256: 5004 iterations an epoch, 100 epochs."""
    recipe = load_recipe(ROOT / "training/recipes/hssl_ibot_vitb16.yaml")
    plan = Plan(recipe, recipe.data.images_per_epoch)
    assert plan.steps == 500_400 and plan.frozen_steps == 3 * 5004
    assert plan.learning_rate(10 * 5004) == pytest.approx(7.5e-4) and plan.learning_rate(plan.steps) == pytest.approx(2e-6)
    assert plan.temperature(0) == 0.04 and plan.temperature(50 * 5004) == 0.07
    assert recipe.optim.clip == 0.3 and recipe.optim.batch_size == 256
    assert recipe.views.global_scale == (0.32, 1.0) and recipe.views.local_number == 10
    config = recipe.model_config()
    assert (config.objective, config.auxiliary, config.auxiliary_depth, config.num_prototypes) == ("ibot", "convnext", 3, 8192)


@pytest.mark.parametrize("name", ["vits16", "vitb16", "vits16_2crops"])
def test_base_methods_differ_from_hssl_in_the_head_alone(name):
    pair = [load_recipe(ROOT / f"training/recipes/{method}_{name}.yaml").to_dict() for method in ("ibot", "hssl_ibot")]
    changed = {line.split(":")[0] for line in differences(*pair)}
    assert changed == {"model.auxiliary", "model.cls_supervision"}


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("optm: {epochs: 3}", [], r"unknown key 'optm'.*Did you mean 'optim'"),
        ("optim: {epoch: 3}", [], r"unknown key 'optim.epoch'.*Did you mean 'epochs'"),
        ("model: {auxilary_depth: 2}", [], r"unknown key 'model.auxilary_depth'.*'auxiliary_depth'"),
        ("views: {jitter: {brigtness: 1}}", [], r"'views.jitter.brigtness'.*'brightness'"),
        ("", ["optim.epochs=many"], "optim.epochs: expected a number, got 'many'"),
        ("", ["optim.batch_size=1.5"], "optim.batch_size: expected int, got 1.5"),
        ("", ["views.global_scale=[0.1]"], "views.global_scale: expected a list of 2 values"),
        ("", ["data.streaming=perhaps"], "data.streaming: expected bool"),
        ("", ["resume=perhaps"], r"resume: expected one of \['auto', 'never'\]"),
        ("", ["model.image_size=64"], "set that instead"),
        ("", ["seed"], "expected an override of the form a.b=c, got 'seed'"),
        ("", ["seed.x=1"], "seed: expected int, got {'x': 1}"),
        ("views: 3", [], "views: expected a section with keys, got 3"),
        ("views: {global_blur: [1.0]}", [], "views: expected one chance per global view"),
    ],
)
def test_mistakes_are_named(tmp_path, text, overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, text), overrides)


def test_missing_recipe_names_the_nearest():
    with pytest.raises(RecipeError, match=r"Did you mean .*quickstart.yaml"):
        load_recipe(ROOT / "training/recipes/quickstat.yaml")


def test_overrides_win_and_yaml_numbers_are_read():
    recipe = load_recipe(None, ["optim.learning_rate_per_256=1e-3", "views.jitter.hue=0.3", "run.trackers=[tensorboard]"])
    assert recipe.optim.learning_rate_per_256 == 1e-3 and recipe.views.jitter.hue == 0.3
    assert recipe.run.trackers == ("tensorboard",)


def test_saved_recipe_reads_back_equal(tmp_path):
    recipe = load_recipe(ROOT / "training/recipes/quickstart.yaml", ["seed=3"])
    recipe.save(tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert differences(yaml.safe_load((tmp_path / "recipe.yaml").read_text()), recipe.to_dict()) == []


def test_differences_leave_out_what_has_no_effect():
    before = Recipe().to_dict()
    after = load_recipe(None, ["optim.clip=1.0", "run.log_every_steps=5", "probe.every_epochs=1", "resume=auto"]).to_dict()
    assert differences(before, after) == ["optim.clip: 3.0 -> 1.0"]


def test_relative_paths_belong_to_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(ROOT / "training/recipes/quickstart.yaml")
    assert Path(recipe.data.path) == ROOT / "training/data/fashion_mnist" and Path(recipe.probe.path).is_dir()
