"""The memory of steps on fake tensors against that of real ones: every method, every engine."""

import pytest
from accelerate.state import AcceleratorState

from hssl_hf.config.recipe import load_recipe
from hssl_hf.engine.memory import peak_allocation
from hssl_hf.pretraining.estimate import ZERO_BUCKET
from hssl_hf.pretraining.setup import build_method
from hssl_hf.pretraining.step_cost import _step
from hssl_hf.pretraining.step_memory import follow_step, random_samples
from tests.conftest import ROOT
from tests.pretraining.measured_steps import estimated, measure
from tests.processes import run_pair

RECIPES = ROOT / "training" / "recipes"

SMALL_VIT = "model.backbone_kwargs={patch_size: 16, embed_dim: 96, depth: 4, num_heads: 2}"
SMALL = [SMALL_VIT, "optim.batch_size=16", "data.images_per_epoch=1000", "optim.mixed_precision=no"]
HEADS = ["model.num_prototypes=512", "model.projection_hidden_size=128"]
DECODER = ["model.decoder_num_attention_heads=2", "model.decoder_num_hidden_layers=2"]
METHODS = {
    "ibot": (None, [*SMALL, *HEADS, "views.num_local_crops=2"]),
    "dino": (None, [*SMALL, *HEADS, "views.num_local_crops=2", "model.objective=dino", "model.patch_supervision=[]"]),
    "moco_v3": (None, [*SMALL, HEADS[1], "views.num_local_crops=0", "model.objective=moco_v3", "model.patch_supervision=[]"]),
    "mae": (RECIPES / "hssl" / "hssl_mae_vits16.yaml", [*SMALL, *DECODER, "model.decoder_hidden_size=64"]),
    "siamese_im": (RECIPES / "siamese_im_vitb16.yaml", [*SMALL, *DECODER, "optim.gradient_accumulation_steps=1"]),
}
METHODS["resnet"] = (None, [*METHODS["moco_v3"][1][1:], "model.backbone=resnet18", "views.global_crop_size=96"])
VARIANTS = {
    "fp32": [],
    "bf16": ["optim.mixed_precision=bf16"],
    "checkpointing": ["run.activation_checkpointing=true"],
    "accumulation": ["optim.gradient_accumulation_steps=2"],
}


def compare(name: str, case: tuple, engine: str) -> None:
    """Print a row of the table of measured and estimated bytes; they must not differ by more than 15 %."""
    results = {}
    measure(0, 0, engine, case, results) if engine == "single" else results.update(run_pair(measure, engine, case))
    measured, expected = max(results.values()), estimated(case, engine)
    print(f"{name:32}{engine:8}{measured / 2**20:10.1f} MiB{expected / 2**20:10.1f} MiB{expected / measured:8.3f}")
    buffer = ZERO_BUCKET if engine.startswith("zero") else 0  # which would hide the rest of so small a model
    assert expected - buffer == pytest.approx(measured - buffer, rel=0.15)


def test_activations_are_not_hidden_by_gradients():
    """Of few images the gradients at the end of a step are its peak, of many the activations in its middle."""
    recipe = load_recipe(
        RECIPES / "siamese_im_vitb16.yaml", [*SMALL, *DECODER, "model.drop_path_rate=0", "views.global_crop_size=32"]
    )
    few, many = (max(m.other + m.blocks + m.rest for m in follow_step(recipe, images)) for images in (1, 64))
    gradients = max(m.blocks + m.rest for m in follow_step(recipe, 1))
    assert few < 1.5 * gradients
    model = build_method(recipe).train()
    samples = random_samples(recipe, model, 64)
    assert many == pytest.approx(peak_allocation(lambda: _step(model, recipe, samples)), rel=0.15) and many > 3 * gradients


def test_nothing_is_allocated():
    """512 images of 224 pixels in two views take 1.2 GB by themselves."""
    recipe = load_recipe(*METHODS["siamese_im"])
    assert peak_allocation(lambda: follow_step(recipe, 512)) < 2**24


@pytest.fixture
def one_process():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", METHODS)
def test_one_process(one_process, capsys, method, variant):
    if variant == "accumulation" and method in ("moco_v3", "resnet"):
        pytest.skip("refused: the images of a batch are each other's negatives")
    file, settings = METHODS[method]
    with capsys.disabled():
        compare(f"{method}, {variant}", (file, [*settings, *VARIANTS[variant]]), "single")


@pytest.mark.slow
def test_the_base_size_of_siamese_im(one_process, capsys):
    settings = ["optim.batch_size=8", "optim.gradient_accumulation_steps=1", "optim.mixed_precision=no"]
    with capsys.disabled():
        compare("siamese_im, ViT-B, 8 images", (RECIPES / "siamese_im_vitb16.yaml", settings), "single")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero1", "zero2"])
@pytest.mark.parametrize("method", METHODS)
def test_two_processes(capsys, method, engine):
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed")
    with capsys.disabled():
        compare(method, METHODS[method], engine)
