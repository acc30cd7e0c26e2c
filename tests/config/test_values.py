"""Every field of every section and configuration: what it refuses, what it allows, and that what is allowed can be trained."""

from collections.abc import Iterator
from functools import partial
from typing import get_args, get_origin

import pytest
from hypothesis import given, settings

import hssl_hf
from hssl_hf.config.evaluation_recipe import EvaluationRecipe
from hssl_hf.config.recipe import Recipe, load_recipe
from hssl_hf.config.strict_yaml import build
from hssl_hf.experiments.study import Study
from hssl_hf.fields import Section, check, describe
from hssl_hf.models.auto import configuration_classes
from tests.config.draws import conditions_of, inside, options_of, outside, split
from tests.faults import refused


def fields_of(section: type[Section], prefix: str = "") -> dict[str, object]:
    """Declarations of a section and of those in it, by their keys."""
    fields = {}
    for name, kind in section.declarations().items():
        fields[prefix + name] = kind
        if isinstance(kind, type) and issubclass(kind, Section):
            fields |= fields_of(kind, f"{prefix}{name}.")
    return fields


RECIPE = fields_of(Recipe)
MODELS = {
    f"{method}.{name}": kind
    for method, config in configuration_classes().items()
    for name, kind in config.declarations().items()
    if name != "image_size"
}
OTHERS = {
    **{f"{method}.image_size": config.declarations()["image_size"] for method, config in configuration_classes().items()},
    **fields_of(EvaluationRecipe, "evaluation."),
    **{f"study.{name}": kind for name, kind in Study.declarations().items()},
}
ALL = {**RECIPE, **MODELS, **OTHERS}
STUDY = {"recipe": "a.yaml", "baseline": "a", "variants": {}}
CLASSES = {"study": lambda **values: Study(**{**STUDY, **values}), **configuration_classes()}


def descriptions(kind) -> Iterator[str]:
    """A declaration in words, and those of the parts of a list: what a message may name as expected."""
    yield describe(kind)
    for option in options_of(kind):
        bare = split(option)[0]
        for part in get_args(bare) if get_origin(bare) in (tuple, dict) else ():
            yield from () if part is Ellipsis else descriptions(part)
        yield from map(describe, (float | str | None,)) if bare is dict else ()


def set_value(key: str, value) -> None:
    """Set a value as its users would: in a recipe, in the part `model` of one, or from Python."""
    owner, _, name = key.partition(".")
    if key in RECIPE or owner == "evaluation":
        for part in reversed((key if key in RECIPE else name).split(".")):
            value = {part: value}
        build(Recipe if key in RECIPE else EvaluationRecipe, value)
    elif key in MODELS:
        build(Recipe, {"model": {"model_type": owner, name: value}})
    else:
        CLASSES[owner](**{name: value})


def test_all_fields_are_walked():
    assert (
        len(RECIPE) > 75
        and len(MODELS) > 60
        and {"views.jitter.hue", "data.path", "optim.betas", "probe.features"} <= set(RECIPE)
    )
    bounded = [key for key, kind in ALL.items() if list(conditions_of(kind))]
    numbers = [key for key, kind in ALL.items() if "number" in describe(kind)]
    assert set(numbers) <= {*bounded}, "every number has a range"


@pytest.mark.fault("recipe values")
@pytest.mark.parametrize("key", ALL)
def test_what_is_outside_a_range_is_refused_with_key_and_range(key):
    name = key.partition(".")[2] if key not in RECIPE else key
    expected = {*descriptions(ALL[key]), "unknown key"}

    @settings(max_examples=8)
    @given(value=outside(ALL[key]))
    def refuses(value):
        with refused(name):
            try:
                set_value(key, value)
            except hssl_hf.errors.UserError as error:
                assert any(words in str(error) for words in expected), error
                raise

    refuses()


@pytest.mark.parametrize("key", ALL)
def test_what_is_inside_a_range_is_allowed(key):
    @settings(max_examples=8)
    @given(value=inside(ALL[key]))
    def allows(value):
        check(ALL[key], value, key)

    allows()


RELATIONS = [
    (["views.global_crop_scale=[0.5, 0.2]"], ["views.global_crop_scale", "ascending"]),
    (["views.global_crop_blur=[0.5]"], ["views.global_crop_solarize: expected one chance per global view, 1"]),
    (["views.blur_sigma=[2, 1]"], ["views.blur_sigma", "ascending"]),
    (["views.mean=[0.5, 0.5]"], ["views.mean", "expected 3 values"]),
    (["masks.ratios=[0.1, 0.2, 0.3]"], ["masks.ratio_jitter: expected one value for each of the 3 ratios"]),
    (["masks.ratios=[0.1]", "masks.ratio_jitter=[0.2]"], ["masks.ratio_jitter", "within 0 and 1"]),
    (["optim.epochs=5"], ["optim.warmup_epochs: expected at most 5.0, the epochs of the training, got 10.0"]),
    (["model.auxiliary=convnet"], ["model.auxiliary: expected one of 'convnext'"]),
    (["model.auxiliary=[vit, vit]"], ["model.auxiliary", "without repetitions"]),
    (["model.auxiliary_connection=parallel", "model.auxiliary=[a, b]"], ["model.auxiliary", "one timm model"]),
    (["model.queue_size=4"], ["model.queue_size: expected 0"]),
    (["model.objective=dino", "model.patch_supervision=['base->base']"], ["model.patch_supervision: expected []"]),
    (
        ["model.auxiliary=null", "model.cls_supervision=['auxiliary->base']"],
        ["model.cls_supervision", "needs an auxiliary head"],
    ),
    (["model={model_type: siamese_im, level: global, target: pixel}"], ["model.level: expected 'dense'"]),
    (["model={model_type: siamese_im, decoder_hidden_size: 36}"], ["model.decoder_num_attention_heads", "divisor", "36"]),
    (["model={model_type: hssl_mae, decoder_hidden_size: 30}"], ["model.decoder_hidden_size: expected a multiple of 4"]),
    (["model={model_type: hssl_search, shared_projection: true}"], ["model.shared_projection: expected false"]),
    (["model={model_type: hssl_search, cls_supervision: [base->base]}"], ["model.cls_supervision: expected an arrow of the"]),
    (["model={model_type: hssl_search, candidates: [vit]}"], ["model.candidates", "of 2 to 6 values"]),
    (["model.backbone_kwargs={in_chans: 7}"], ["model.backbone_kwargs.in_chans from 1 to 4"]),
    (["model.image_size=32"], ["model.image_size: follows from views.global_crop_size"]),
    (["model.model_type=dino"], ["model.model_type: expected one of 'hssl'"]),
]


@pytest.mark.fault("recipe values")
@pytest.mark.parametrize(("overrides", "words"), RELATIONS, ids=lambda value: value[0] if value else None)
def test_values_that_do_not_fit_each_other_are_refused(overrides, words):
    with refused(*words):
        load_recipe(None, overrides)


@pytest.mark.fault("recipe values")
def test_assignments_to_a_configuration_are_checked():
    config = hssl_hf.HSSLConfig()
    with refused("num_prototypes: expected a whole number from 2", "got 1"):
        config.num_prototypes = 1
    config.num_prototypes = 7.0
    assert config.num_prototypes == 7 and type(config.num_prototypes) is int
    partial(setattr, config, "auxiliary")(["vit", "swin"])
    assert config.auxiliary == ("vit", "swin")
