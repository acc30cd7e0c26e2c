"""A step with gradients that are not finite is captured, and fails again when it is replayed."""

import pytest
import torch
from accelerate import Accelerator

from hssl_hf import HSSLForPreTraining
from hssl_hf.config.recipe import load_recipe
from hssl_hf.data.augmentation import Augmentation
from hssl_hf.data.views import collate
from hssl_hf.engine.checkpoint import CheckpointError
from hssl_hf.engine.distributed import Engine
from hssl_hf.engine.optim import build_optimizer, set_rates
from hssl_hf.pretraining.replay import BatchRecorder, replay
from tests.conftest import ROOT
from tests.faults import refused


@pytest.fixture
def training(tmp_path):
    """A run's recipe, model and engine, and batches of random images."""
    recipe = load_recipe(
        ROOT / "training" / "recipes" / "quickstart.yaml",
        [
            "model.backbone_kwargs={patch_size: 14, embed_dim: 32, depth: 2, num_heads: 1, weight_init: moco}",
            "model.projection_hidden_size=16",
            "model.projection_size=8",
            "model.drop_path_rate=0.5",
            "optim.mixed_precision=no",
        ],
    )
    recipe.save(tmp_path / "recipe.yaml")
    torch.manual_seed(0)
    method = HSSLForPreTraining(recipe.model_config()).train()
    optimizer = build_optimizer(method.student, (0.9, 0.999))
    set_rates(optimizer, 0.01, 0.1)
    return recipe, method, Engine(Accelerator(cpu=True), method, optimizer, bf16=False)


def batch(recipe, seed: int):
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    augmentation = Augmentation(recipe.views)
    return collate([{**augmentation(image, 0, seed + i), "corrupt": []} for i, image in enumerate(images)])


def train_step(training, recorder, number: int, views):
    recipe, _, engine = training
    recorder.record(number, views, 0.07)
    output = engine.forward(pixel_values=views.augment_and_normalize(recipe.views).pixel_values)
    loss = output.loss * float("inf") if number == 2 else output.loss  # as an overflow would
    engine.backward(loss)
    engine.clip_and_step(number, [], 3.0, "per_parameter")


def test_weights_are_frozen_from_the_first_bad_step_on(training):
    recipe, method, engine = training
    recorder = BatchRecorder(1)
    for number in range(2):
        train_step(training, recorder, number, batch(recipe, number))
    before = {
        name: value.clone() for name, value in method.state_dict().items() if "running" not in name and "num_" not in name
    }
    for number in range(2, 5):
        train_step(training, recorder, number, batch(recipe, number))
    assert int(engine.bad_step) == 2
    assert all(torch.equal(method.state_dict()[name], value) for name, value in before.items())


def test_captured_step_fails_again(training, tmp_path):
    recipe, method, engine = training
    recorder = BatchRecorder(2)
    for number in range(2):
        train_step(training, recorder, number, batch(recipe, number))
    healthy = recorder.save(engine.accelerator, method, tmp_path, 1)
    (report,) = replay(healthy)
    assert report.not_finite == [] and report.losses["loss"] > 0
    recorder.record(2, batch(recipe, 5), 0.07)
    with torch.no_grad():
        method.student.base.model.blocks[0].mlp.fc2.weight[0, 0] = float("inf")
    (report,) = replay(recorder.save(engine.accelerator, method, tmp_path, 2))
    assert "student.base.model.patch_embed.proj.weight" in report.not_finite


def test_replayed_step_has_the_same_loss(training, tmp_path):
    """The batch, the weights and the random state are those of the step."""
    recipe, method, engine = training
    recorder, views = BatchRecorder(1), batch(recipe, 7)
    recorder.record(0, views, 0.07)
    loss = engine.forward(pixel_values=views.augment_and_normalize(recipe.views).pixel_values).loss.item()
    torch.rand(10)
    (report,) = replay(recorder.save(engine.accelerator, method, tmp_path, 0))
    assert report.losses["loss"] == loss


@pytest.mark.fault("links in a run")
@pytest.mark.parametrize("kind", ["folder", "weights", "captures"])
def test_nothing_is_captured_through_a_link(training, tmp_path, kind):
    recipe, method, engine = training
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "model.safetensors").write_text("private")
    step = tmp_path / "captures" / "step-00000000"
    if kind == "weights":
        step.mkdir(parents=True)
        (step / "model.safetensors").symlink_to(tmp_path / "private" / "model.safetensors")
    else:
        step.parent.mkdir(exist_ok=kind == "folder")
        step.symlink_to(tmp_path / "private")
        if kind == "captures":
            step.unlink()
            step.parent.rmdir()
            step.parent.symlink_to(tmp_path / "private")
    recorder = BatchRecorder(1)
    recorder.record(0, batch(recipe, 7), 0.07)
    if kind == "captures":
        with refused("captures", "link"):
            recorder.save(engine.accelerator, method, tmp_path, 0)
    else:
        recorder.save(engine.accelerator, method, tmp_path, 0)
    assert [path.read_text() for path in (tmp_path / "private").iterdir()] == ["private"]


def test_folder_without_capture_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        replay(tmp_path)
