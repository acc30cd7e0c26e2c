from pathlib import Path

import pytest
import torch
import yaml

from hssl_hf.config.recipe import Recipe, RecipeError, load_recipe, recipe_diff
from hssl_hf.config.recipe_files import recipes
from hssl_hf.pretraining.setup import build_method
from hssl_hf.pretraining.training_schedule import TrainingSchedule
from tests.conftest import ROOT

RECIPES = recipes()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_parses(name):
    recipe = load_recipe(RECIPES[name])
    assert recipe.model_config().image_size == recipe.views.global_crop_size
    schedule = TrainingSchedule(recipe, recipe.data.images_per_epoch or 10_000)
    assert schedule.steps > 100 and schedule.learning_rate(schedule.steps - 1) < schedule.learning_rate(schedule.steps // 2)
    header = RECIPES[name].read_text().splitlines()[0]
    assert header.startswith("# "), "the first line of a recipe states what it is"


BUILT = [  # at least one of every kind of network
    "quickstart",
    "photographs",
    "siamese_im_cifar10",
    "mae_cifar10",
    "hssl_ibot_vits16",
    "hssl_dino_vits16_2crops",
    "hssl_moco_v3_queue_vits16",
    "hssl_mae_vits16",
    "s300_vits16_swin",
    "s300_resnet50_resmlp",
    "s300_convnext_and_resmlp",
    "table17_parallel",
    "table18_both",
    "table19_deep_to_shallow",
    "siamese_im_vitb16",
    "siamese_im_table3_mae",
    "siamese_im_table3_j",
    "siamese_im_table3_moco_v3",
]


@pytest.mark.parametrize("name", BUILT)
def test_a_recipe_builds_its_model(name):
    """Of full size, without memory for its weights; views and masks suit it."""
    with torch.device("meta"):
        build_method(load_recipe(RECIPES[name]))


NO_COLOR = "views.global_crop_blur views.global_crop_solarize views.gray_probability views.jitter.probability"
ONE_VIEW = "model.views views.global_crop_blur views.global_crop_solarize"
OTHER_HEADS = ("poolformer", "resmlp", "resnet", "swin", "vit")
DIFFERENCES = {  # variant: the recipe that it is compared with, and the only keys in which it differs from that
    "s300_depth3": ("s300_vits16_convnext", "model.auxiliary_depth"),
    "s300_shortcut": ("s300_vits16_convnext", "model.auxiliary_first_shortcut"),
    "s300_convnext_and_resmlp": ("s300_vits16_convnext", "model.auxiliary"),
    **{f"s300_vits16_{head}": ("s300_vits16_convnext", "model.auxiliary") for head in OTHER_HEADS},
    **{f"s300_resnet50_{head}": ("s300_resnet50_convnext", "model.auxiliary") for head in OTHER_HEADS},
    "s300_resnet50_convnext": ("s300_dino_resnet50", "model.auxiliary model.auxiliary_depth model.cls_supervision"),
    "s300_hssl_ibot_vits16": ("s300_ibot_vits16", "model.auxiliary model.auxiliary_depth model.cls_supervision"),
    "ibot_vitb16_400": ("ibot_vitb16", "optim.epochs"),
    "ibot_vits16_800": ("ibot_vits16", "optim.epochs"),
    "hssl_ibot_vitb16_150": ("hssl_ibot_vitb16", "optim.epochs"),
    "s50_ibot_vits16": ("ibot_vits16_2crops", "data.classes data.images_per_epoch optim.epochs"),
    "s919_ibot_vits16": ("ibot_vits16_2crops", "data.classes data.images_per_epoch"),
    "s300_ibot_vits16": ("ibot_vits16_2crops", "data.classes data.images_per_epoch"),
    "s300_dino_vits16": ("dino_vits16_2crops", "data.classes data.images_per_epoch"),
    "s300_dino_resnet50": ("s300_dino_vits16", "model.backbone model.drop_path_rate"),
    "s300_vits16_convnext": ("s300_dino_vits16", "model.auxiliary model.auxiliary_depth model.cls_supervision"),
    "table14_a": ("s300_vits16_convnext", "model.cls_supervision"),
    "table14_a_b": ("s300_vits16_convnext", "model.cls_supervision"),
    "table15_mixer": ("s300_vits16_convnext", "model.auxiliary_sublayers"),
    "table15_mlp": ("s300_vits16_convnext", "model.auxiliary_sublayers"),
    "table16_shared": ("s300_vits16_convnext", "model.shared_projection"),
    "table17_parallel": ("s300_vits16_convnext", "model.auxiliary model.auxiliary_connection"),
    "table18_image": ("s300_ibot_vits16", "model.auxiliary model.auxiliary_depth model.cls_supervision"),
    "table18_both": ("table18_image", "model.patch_supervision"),
    "table19_deep_to_shallow": ("s300_dino_vits16", "model.cls_supervision model.shallow_block"),
    "hssl_ibot_vits16": ("ibot_vits16", "model.auxiliary model.cls_supervision"),
    "hssl_ibot_vitb16": ("ibot_vitb16", "model.auxiliary model.cls_supervision"),
    "hssl_ibot_vits16_2crops": ("ibot_vits16_2crops", "model.auxiliary model.cls_supervision"),
    "hssl_dino_vits16": ("dino_vits16", "model.auxiliary model.cls_supervision"),
    "hssl_dino_vits16_2crops": ("dino_vits16_2crops", "model.auxiliary model.cls_supervision"),
    "hssl_moco_v3_vits16": ("moco_v3_vits16", "model.auxiliary model.cls_supervision"),
    "hssl_mae_vits16": ("mae_vits16", "model.auxiliary"),
    "s50_hssl_ibot_vits16": ("s50_ibot_vits16", "model.auxiliary model.cls_supervision"),
    "s919_hssl_ibot_vits16": ("s919_ibot_vits16", "model.auxiliary model.cls_supervision"),
    "siamese_im_table3_h": ("siamese_im_vitb16_400", "model.loss_normalization"),
    "siamese_im_table3_g": ("siamese_im_table3_h", "masks.shape"),
    "siamese_im_table3_f": ("siamese_im_table3_g", "model.decoder_norm"),
    "siamese_im_table3_e": ("siamese_im_table3_f", NO_COLOR),
    "siamese_im_table3_d": ("siamese_im_table3_e", "model.loss_normalization model.target"),
    "siamese_im_table3_a": ("siamese_im_table3_d", ONE_VIEW),
    "siamese_im_table3_b": ("siamese_im_table3_e", ONE_VIEW),
    "siamese_im_table3_c": ("siamese_im_table3_a", NO_COLOR.replace("views.global_crop_solarize ", "")),
    "siamese_im_table3_j": ("siamese_im_table3_g", "model.level"),
}


@pytest.mark.parametrize("variant", DIFFERENCES)
def test_an_ablation_differs_in_what_it_is_about(variant):
    other, keys = DIFFERENCES[variant]
    assert set(_changed(load_recipe(RECIPES[other]), load_recipe(RECIPES[variant]))) == set(keys.split())


def _changed(first: Recipe, second: Recipe) -> list[str]:
    return [line.partition(":")[0] for line in recipe_diff(first.to_dict(), second.to_dict())]


def test_paper_recipe_has_the_numbers_of_table_20():
    """HSSL, Table 20 and the released command, ViT-B/16 at batch 256: 5004 iterations an epoch, 100 epochs."""
    recipe = load_recipe(ROOT / "training/recipes/hssl_ibot_vitb16.yaml")
    schedule = TrainingSchedule(recipe, recipe.data.images_per_epoch)
    assert schedule.steps == 500_400 and schedule.frozen_steps == {"prototypes": 3 * 5004, "base": 0}
    assert schedule.learning_rate(10 * 5004) == pytest.approx(7.5e-4) and schedule.learning_rate(
        schedule.steps
    ) == pytest.approx(2e-6)
    assert schedule.temperature(0) == 0.04 and schedule.temperature(50 * 5004) == 0.07
    assert recipe.optim.max_grad_norm == 0.3 and recipe.optim.batch_size == 256
    assert recipe.views.global_crop_scale == (0.32, 1.0) and recipe.views.num_local_crops == 10
    config = recipe.model_config()
    assert (config.objective, config.auxiliary, config.auxiliary_depth, config.num_prototypes) == ("ibot", "convnext", 3, 8192)


def test_siamese_recipe_has_the_numbers_of_table_4():
    """SiameseIM, Table 4 and the released script: peak 1e-3 at batch 4096, 40 epochs of warm-up, momentum .995 to 1."""
    recipe = load_recipe(ROOT / "training/recipes/siamese_im_vitb16.yaml")
    schedule = TrainingSchedule(recipe, recipe.data.images_per_epoch)
    per_epoch = 1281167 // 4096
    assert schedule.steps == 1600 * per_epoch and schedule.learning_rate(40 * per_epoch) == pytest.approx(1e-3)
    assert schedule.learning_rate(40 * per_epoch - 1) < 1e-3, "the peak comes after the warm-up"
    assert schedule.momentum(0) == 0.995 and schedule.learning_rate(0) == 0 and schedule.weight_decay(5) == 0.05
    assert recipe.optim.betas == (0.9, 0.95) and (recipe.optim.max_grad_norm, recipe.optim.grad_clip) == (1.0, "global")
    assert recipe.views.global_crop_scale == (0.08, 1.0) and recipe.masks.shape == "fixed_count_block"
    config = recipe.model_config()
    assert (
        config.projector_depth,
        config.decoder_num_hidden_layers,
        config.decoder_num_attention_heads,
        config.negative_weight,
    ) == (2, 4, 16, 0.02)
    assert round(recipe.masks.ratios[0] * 196) == 118


def test_first_row_of_table_3_is_mae():
    recipe = load_recipe(RECIPES["siamese_im_table3_mae"])
    config, schedule = recipe.model_config(), TrainingSchedule(recipe, recipe.data.images_per_epoch)
    assert (config.target, config.views, config.decoder_norm, config.decoder_hidden_size, config.decoder_num_hidden_layers) == (
        "pixel",
        "same",
        "layer",
        512,
        8,
    )
    assert recipe.masks.shape == "random" and recipe.masks.ratios == (0.75,) and len(recipe.views.global_crop_blur) == 1
    assert schedule.learning_rate(schedule.steps // 40 * 4) == pytest.approx(2.4e-3, rel=0.05)


def test_recipes_extend_each_other(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "optim: {epochs: 3, warmup_epochs: 0, max_grad_norm: 1.0}\nmodel: {backbone_kwargs: {depth: 2, num_heads: 2}}"
    )
    (tmp_path / "sub").mkdir()
    upper = "extends: ../base.yaml\noptim: {epochs: 4}\nmodel: {backbone_kwargs: {depth: 1}}\ndata: {path: ./images}"
    (tmp_path / "sub/upper.yaml").write_text(upper)
    recipe = load_recipe(tmp_path / "sub/upper.yaml", ["optim.max_grad_norm=null"])
    assert (recipe.optim.epochs, recipe.optim.max_grad_norm) == (4, None)
    assert recipe.model == {"backbone_kwargs": {"depth": 1, "num_heads": 2}}
    assert recipe.data.path == str(tmp_path / "sub/images")
    (tmp_path / "base.yaml").write_text("extends: sub/upper.yaml")
    with pytest.raises(RecipeError, match="extends itself"):
        load_recipe(tmp_path / "base.yaml")
    (tmp_path / "lost.yaml").write_text("extends: nowhere.yaml")
    with pytest.raises(RecipeError, match=r"there is no recipe .*nowhere\.yaml"):
        load_recipe(tmp_path / "lost.yaml")


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("optm: {epochs: 3}", [], "^optm: unknown key. Did you mean 'optim'"),
        ("optim: {epoch: 3}", [], "^optim.epoch: unknown key. Did you mean 'epochs'"),
        ("model: {auxilary_depth: 2}", [], "^model.auxilary_depth: unknown key. Did you mean 'auxiliary_depth'"),
        ("views: {jitter: {brigtness: 1}}", [], "^views.jitter.brigtness: unknown key. Did you mean 'brightness'"),
        ("", ["optim.epochs=many"], "^optim.epochs: expected a number above 0 .*, got 'many'"),
        ("", ["optim.batch_size=1.5"], "^optim.batch_size: expected a whole number from 1 to 1048576, got 1.5"),
        ("", ["views.global_crop_scale=[0.1]"], "views.global_crop_scale: expected a list of 2 values"),
        ("", ["data.streaming=perhaps"], "^data.streaming: expected true or false"),
        ("", ["resume_from_checkpoint=perhaps"], "^resume_from_checkpoint: expected one of 'auto', 'never'"),
        ("", ["model.image_size=64"], "set that instead"),
        ("", ["seed"], "expected an override of the form a.b=c, got 'seed'"),
        ("", ["seed.x=1"], "^seed: expected a whole number from 0 .*, got {'x': 1}"),
        ("optim: {epochs: 3", [], "not valid YAML"),
        ("- 1", [], r"expected sections with keys, got \[1\]"),
        ("", ["optim.betas=[0.9"], "not valid YAML"),
        ("model: {model_type: mea}", [], "model.model_type: expected one of"),
        ("model: {model_type: siamese_im, auxiliary: vit}", [], "^model.auxiliary: unknown key"),
        ("views: 3", [], "views: expected a section with keys, got 3"),
        ("views: {global_crop_blur: [1.0]}", [], "^views.global_crop_solarize: expected one chance per global view"),
    ],
)
def test_mistakes_are_named(tmp_path, text, overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, text), overrides)


def test_missing_recipe_names_the_nearest():
    with pytest.raises(RecipeError, match=r"Did you mean .*quickstart.yaml"):
        load_recipe(ROOT / "training/recipes/quickstat.yaml")


def test_overrides_win_and_yaml_numbers_are_read():
    recipe = load_recipe(None, ["optim.base_learning_rate=1e-3", "views.jitter.hue=0.3", "run.report_to=[tensorboard]"])
    assert recipe.optim.base_learning_rate == 1e-3 and recipe.views.jitter.hue == 0.3
    assert recipe.run.report_to == ("tensorboard",)


def test_saved_recipe_reads_back_equal(tmp_path):
    recipe = load_recipe(ROOT / "training/recipes/quickstart.yaml", ["seed=3"])
    recipe.save(tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert recipe_diff(yaml.safe_load((tmp_path / "recipe.yaml").read_text()), recipe.to_dict()) == []


@pytest.mark.fault("links in a run")
@pytest.mark.parametrize("name", ["thesis.yaml", "new.yaml"])
def test_a_recipe_is_not_saved_through_a_link(tmp_path, name):
    (tmp_path / "thesis.yaml").write_text("years of work")
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "recipe.yaml"
    path.symlink_to(tmp_path / name)
    load_recipe(None, ["seed=3"]).save(path)
    assert load_recipe(path).seed == 3 and not path.is_symlink()
    assert (tmp_path / "thesis.yaml").read_text() == "years of work" and not (tmp_path / "new.yaml").exists()


def test_differences_leave_out_what_has_no_effect():
    before = Recipe().to_dict()
    after = load_recipe(
        None, ["optim.max_grad_norm=1.0", "run.logging_steps=5", "probe.every_epochs=1", "resume_from_checkpoint=auto"]
    ).to_dict()
    assert recipe_diff(before, after) == ["optim.max_grad_norm: 3.0 -> 1.0"]


def test_relative_paths_belong_to_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(ROOT / "training/recipes/quickstart.yaml")
    assert Path(recipe.data.path) == ROOT / "training/data/fashion_mnist" and Path(recipe.probe.path).is_dir()


def test_fresh_heads_warm_up_for_an_epoch_unless_the_recipe_differs():
    """100 images in batches of 10 are 10 steps; the prototypes are frozen in the first epoch anyway."""
    recipe = load_recipe(None, ["optim.batch_size=10", "optim.epochs=5", "optim.warmup_epochs=0"])
    assert TrainingSchedule(recipe, 100).frozen_steps == {"prototypes": 10, "base": 0}
    assert TrainingSchedule(recipe, 100).frozen_groups(9) == {"prototypes"}
    schedule = TrainingSchedule(recipe, 100, fresh_heads=True)
    assert (
        schedule.frozen_groups(9) == {"prototypes", "base"}
        and schedule.frozen_groups(10) == set()
        and schedule.warmup_end == 10
    )
    longer = load_recipe(
        None, ["optim.batch_size=10", "optim.epochs=5", "optim.warmup_epochs=0", "optim.freeze_backbone_epochs=3"]
    )
    assert (
        TrainingSchedule(longer, 100).frozen_groups(29) == {"base"}
        and TrainingSchedule(longer, 100, fresh_heads=True).warmup_end == 30
    )
