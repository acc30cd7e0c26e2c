"""What a recipe allows can be trained: two steps with one field at a time drawn from its range.

The profile bounds what costs memory or time, fixes names of things outside the recipe, and adds what a value needs of others.
"""

import json
import os
import signal

import pytest
from accelerate.state import AcceleratorState
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hssl_hf.config.recipe import Recipe, load_recipe
from hssl_hf.models.auto import configuration_classes
from hssl_hf.pretraining.trainer import PreTrainer
from hssl_hf.runs.metric_logger import read_log
from tests.config.draws import inside
from tests.config.test_values import RECIPE
from tests.conftest import ROOT, SAMPLE
from tests.launches import settings_of

IBOT = [
    "model.objective=ibot",
    "model.patch_supervision=[base->base]",
    "model.num_prototypes=16",
    "views.num_local_crops=1",
    "views.local_crop_size=14",
]
TWO_STEPS = [
    "data.images_per_epoch=16",
    "optim.batch_size=8",
    "optim.epochs=1",
    "optim.warmup_epochs=0.5",
    "data.num_workers=0",
]
TWO_STEPS += ["run.export=false", "run.save_steps=1000", "probe.path=null", f"data.path={SAMPLE}"]
BASES = {
    "hssl": [*settings_of("hssl"), *IBOT],
    "hssl_search": [*settings_of("hssl"), *IBOT, "model.model_type=hssl_search", "model.candidates=[vit, resmlp]"],
    "hssl_mae": settings_of("mae"),
    "siamese_im": settings_of("siamese_im"),
}
PROBE = {"probe.path": str(SAMPLE), "probe.train_images": 20, "probe.test_images": 10}
BRIEF = st.floats(0, 0.5)
SMALL, FEW = st.integers(1, 48), st.integers(1, 3)
ARROWS = [["base->base"], ["auxiliary->base", "auxiliary->auxiliary"], ["auxiliary->auxiliary", "base->base"]]
ONE_EACH = st.integers(1, 3).flatmap(lambda n: st.lists(st.floats(0, 1), min_size=n, max_size=n))


def fixed(*values):
    return st.sampled_from(values)


def with_others(draws: st.SearchStrategy, others):
    """Values together with values of further keys that they require: a function of the value."""
    return draws.map(lambda value: (value, others(value)))


PROFILE = {
    "data.path": fixed(str(SAMPLE)),
    **dict.fromkeys(
        ("data.name", "data.revision", "data.classes", "probe.name", "probe.revision", "probe.classes"), fixed(None)
    ),
    **dict.fromkeys(("data.image_column", "probe.image_column"), fixed(None, "image")),
    **dict.fromkeys(("data.label_column", "probe.label_column"), fixed("label")),
    **dict.fromkeys(("data.split", "probe.train_split", "probe.test_split"), fixed("train", "test")),
    "data.images_per_epoch": st.integers(8, 40),
    "data.num_workers": st.integers(0, 1),  # torch warns of more than there are processors
    "data.shuffle_buffer_size": st.integers(1, 200),
    "data.fraction": st.floats(0.5, 1),
    "probe.path": fixed(None, str(SAMPLE)),
    "probe.train_images": st.integers(10, 30),  # of which not all have the same label
    "probe.test_images": st.integers(5, 30),
    "init_from": fixed(None),
    "optim.epochs": st.floats(0.5, 3),
    "optim.batch_size": fixed(2, 4, 16),
    "optim.gradient_accumulation_steps": fixed(1, 2, 4),
    "optim.base_learning_rate": st.floats(1e-3, 1),
    "optim.min_learning_rate": st.floats(0, 1e-6),
    "optim.warmup_epochs": st.floats(0, 1),
    "optim.weight_decay": st.lists(st.floats(0, 10), min_size=2, max_size=2),
    "masks.shape": fixed("block", "random", "fixed_count_block"),
    "masks.ratios": with_others(ONE_EACH, lambda ratios: {"masks.ratio_jitter": [0.0] * len(ratios)}),
    "masks.ratio_jitter": with_others(st.floats(0, 0.5).map(lambda x: [x]), lambda _: {"masks.ratios": [0.5]}),
    "views.global_crop_size": fixed(14, 28, 56),
    "views.local_crop_size": fixed(14, 28),
    "views.num_local_crops": st.integers(0, 3),
    "views.global_crop_blur": st.lists(st.floats(0, 1), min_size=2, max_size=2),
    "views.global_crop_solarize": st.lists(st.floats(0, 1), min_size=2, max_size=2),
    "views.mean": st.lists(st.floats(0, 1), min_size=3, max_size=3),
    "views.std": st.lists(st.floats(0.001, 1), min_size=3, max_size=3),
    "run.output_dir": fixed(None),
    "run.export": fixed(False),
    "run.report_to": fixed([], ["tensorboard"]),
}
TWO_BLOCKS = {"patch_size": 14, "embed_dim": 32, "depth": 2, "num_heads": 1}
MODEL_PROFILE = {
    "backbone": fixed("vit_tiny_patch16_224", "vit_small_patch16_224"),
    "backbone_kwargs": fixed(TWO_BLOCKS),
    "auxiliary": fixed(None, "convnext", "poolformer", "resmlp", "resnet", "swin", "vit", ["vit", "resmlp"]),
    "auxiliary_connection": fixed("serial"),
    "auxiliary_depth": FEW,
    "auxiliary_hidden_size": fixed(None, 32, 64),
    "objective": with_others(fixed("dino", "moco_v3", "ibot"), lambda objective: OBJECTIVES[objective]),
    "cls_supervision": fixed(*ARROWS),
    "patch_supervision": fixed([], *ARROWS),
    "shallow_block": with_others(fixed(None, 1), lambda block: {} if block is None else SHALLOW),
    "visible_patches_only": with_others(fixed(False, True), lambda visible: VISIBLE if visible else {}),
    "candidates": fixed(["vit", "swin"], ["convnext", "poolformer", "resmlp", "resnet", "swin", "vit"]),
    "shared_projection": fixed(False, True),
    "projection_hidden_size": SMALL,
    "projection_size": SMALL,
    "num_prototypes": st.integers(2, 48),
    "queue_size": with_others(st.integers(0, 64), lambda _: OBJECTIVES["moco_v3"]),
    "decoder_hidden_size": fixed(8, 32, 64),
    "decoder_num_attention_heads": fixed(1, 2, 4),
    "decoder_num_hidden_layers": FEW,
    "representation_decoder_depth": FEW,
    "projector_depth": st.integers(0, 2),
    "target": with_others(fixed("feature", "pixel"), lambda _: {}),
    "views": with_others(fixed("different", "same"), lambda views: SAME if views == "same" else {}),
}
OBJECTIVES = {
    "ibot": {},
    "dino": {"model.objective": "dino", "model.patch_supervision": []},
    "moco_v3": {"model.objective": "moco_v3", "model.patch_supervision": [], "views.num_local_crops": 0},
}
ALONE = {"model.auxiliary": None, "model.cls_supervision": ["base->base"]}
SHALLOW = {
    **OBJECTIVES["dino"],
    **ALONE,
    "model.backbone_kwargs": TWO_BLOCKS,
    "model.cls_supervision": ["base->base", "base->shallow"],
}
VISIBLE = {**OBJECTIVES["moco_v3"], **ALONE, "masks.shape": "random", "masks.ratios": [0.5], "masks.ratio_jitter": [0.0]}
NOT_OF_A_SEARCH = ("auxiliary", "cls_supervision", "shallow_block", "shared_projection", "visible_patches_only")
SAME = {"views.global_crop_blur": [0.0], "views.global_crop_solarize": [0.0]}
KEYS = [key for key, kind in RECIPE.items() if not hasattr(kind, "declarations") and key != "model"]  # whose keys follow
KEYS += [f"{method}: model.{name}" for method in BASES for name in configuration_classes()[method].declarations()]
KEYS = [key for key in KEYS if not key.endswith("model.image_size")]
KEYS = [key for key in KEYS if key not in {f"hssl_search: model.{name}" for name in NOT_OF_A_SEARCH}]
QUICK = ["masks.ratios", "hssl_mae: model.decoder_hidden_size", "siamese_im: model.level"]


def draws_of(key: str) -> st.SearchStrategy:
    """Values of a key, as overrides, with those of others that they require."""
    method, _, key = key.rpartition(": ")
    section, _, name = key.partition(".")
    if section == "model" and name:
        draws = MODEL_PROFILE.get(name, inside(configuration_classes()[method].declarations()[name]))
    else:
        draws = PROFILE.get(key, inside(RECIPE[key]))
    others = PROBE if section == "probe" else {}
    return draws.map(lambda value: others | {key: value} if not isinstance(value, tuple) else value[1] | {key: value[0]})


@pytest.fixture
def train(tmp_path_factory, monkeypatch):
    """Train by a recipe in this process; returns the log."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})  # one thread
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}

    def run(method: str, overrides: dict) -> list[dict]:
        AcceleratorState._reset_state(reset_partial_state=True)
        folder = tmp_path_factory.mktemp("run")
        recipe = next((value for value in BASES[method] if value.endswith(".yaml")), QUICKSTART)
        values = [value for value in (*BASES[method], *TWO_STEPS) if value != recipe]
        values += [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in overrides.items()]
        assert PreTrainer(load_recipe(ROOT / recipe, values), folder).train() == 0
        return read_log(folder / "log.jsonl")

    yield run
    AcceleratorState._reset_state(reset_partial_state=True)
    for number, handler in handlers.items():
        signal.signal(number, handler)


QUICKSTART = "training/recipes/quickstart.yaml"


@pytest.mark.parametrize("key", [pytest.param(key, marks=[] if key in QUICK else pytest.mark.slow) for key in KEYS])
def test_two_steps_run_with_what_a_field_allows(key, train):
    @settings(max_examples=1 if key in QUICK else 3, suppress_health_check=list(HealthCheck))
    @given(overrides=draws_of(key))
    def trains(overrides):
        log = train(key.rpartition(": ")[0] or "hssl", overrides)
        assert [line["step"] for line in log if "loss" in line], overrides

    trains()


def test_every_field_of_a_recipe_is_drawn():
    assert {key for key in RECIPE if key not in KEYS} == {
        "model",
        "views",
        "views.jitter",
        "masks",
        "data",
        "optim",
        "probe",
        "run",
    }
    assert isinstance(Recipe(), Recipe) and set(QUICK) <= set(KEYS)
