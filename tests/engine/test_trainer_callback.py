"""transformers' `Trainer` computes what our own loop computes, evaluates, and resumes exactly."""

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from hssl_hf import TeacherUpdateCallback, collate_views
from hssl_hf.engine.distributed import Engine, make_accelerator
from hssl_hf.engine.optim import build_optimizer, set_rates
from hssl_hf.engine.schedules import Cosine
from tests.conftest import siamese_views, tiny_model, tiny_siamese, tiny_views

STEPS, IMAGES, RATE, DECAY, CLIP = 3, 4, 1e-3, 0.05, 0.5
MODELS = {"ibot": (tiny_model, tiny_views), "siamese": (tiny_siamese, siamese_views)}


class Images(Dataset):
    """The images of the batches that `views` makes, one by one."""

    def __init__(self, views, batches: int = STEPS):
        self.batches = [views(seed=step, images=IMAGES) for step in range(batches)]

    def __len__(self) -> int:
        return IMAGES * len(self.batches)

    def __getitem__(self, index: int) -> dict:
        batch = self.batches[index // IMAGES]
        return {name: value[:, index % IMAGES] for name, value in batch.items()}


def optimizer_of(model):
    optimizer = build_optimizer(model.student, (0.9, 0.999))
    set_rates(optimizer, RATE, DECAY)
    return optimizer


def trainer_of(model, views, folder, **changes) -> Trainer:
    arguments = {
        "max_steps": STEPS, "per_device_train_batch_size": IMAGES, "per_device_eval_batch_size": IMAGES, "max_grad_norm": CLIP,
        "report_to": "none", "use_cpu": True, "save_strategy": "no", "train_sampling_strategy": "sequential",
        "disable_tqdm": True, "dataloader_pin_memory": False, "logging_strategy": "no", **changes,
    }  # fmt: skip
    optimizer = optimizer_of(model)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    return Trainer(
        model,
        TrainingArguments(str(folder), **arguments),
        train_dataset=Images(views),
        eval_dataset=Images(views, 2),
        data_collator=collate_views,
        optimizers=(optimizer, constant),
        callbacks=[TeacherUpdateCallback((0.9, 1.0))],
    )


def assert_equal_weights(actual, expected):
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(
            actual.state_dict()[name], value, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("name", MODELS)
def test_three_steps_are_those_of_our_own_loop(tmp_path, name):
    """Student, teacher, centers and statistics of batch norms, from the same batches, optimizer and clipping."""
    build, views = MODELS[name]
    model = build(drop_path_rate=0.0)
    trainer_of(model, views, tmp_path).train()

    expected = build(drop_path_rate=0.0).train()
    start = {key: value.clone() for key, value in expected.state_dict().items()}
    engine = Engine(make_accelerator(False, 1, IMAGES), expected, optimizer_of(expected), bf16=False)
    momentum = Cosine(0.9, 1.0, STEPS)
    for step in range(STEPS):
        engine.backward(engine.forward(**views(seed=step, images=IMAGES)).loss)
        engine.clip_and_step(step, (), CLIP, "global")
        expected.update_teacher(momentum(step + expected.teacher_updates_first))
    assert_equal_weights(model, expected)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, start[key])}
    assert any(key.startswith("teacher.base") for key in moved) and any(key.startswith("student.base") for key in moved)


@pytest.mark.parametrize("name", MODELS)
def test_a_resumed_training_continues_identically(tmp_path, name):
    """The momentum of the teacher continues with the number of the step; drop path draws the same samples."""
    build, views = MODELS[name]
    model = build(drop_path_rate=0.3)
    trainer_of(model, views, tmp_path, save_strategy="steps", save_steps=2, seed=3).train()
    resumed = build(seed=1, drop_path_rate=0.3)
    trainer_of(resumed, views, tmp_path, seed=3).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_equal_weights(resumed, model)


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_returns_the_loss_and_changes_nothing(tmp_path, name):
    """Not even the centers, which collect outputs of the teacher in training."""
    build, views = MODELS[name]
    model = build(drop_path_rate=0.0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer = trainer_of(model, views, tmp_path)
    loss = trainer.evaluate()["eval_loss"]
    model.eval()
    expected = [model(**views(seed=step, images=IMAGES)).loss.item() for step in range(2)]
    assert loss == pytest.approx(sum(expected) / 2, rel=1e-5)
    model.update_teacher(1.0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    output = model(**views(seed=0, images=IMAGES), return_loss=False)
    assert output.loss is None and "loss" not in output and output.losses


def test_views_come_first_in_a_batch():
    batch = collate_views(
        [{"pixel_values": torch.full((2, 3, 8, 8), float(i)), "crop_boxes": torch.zeros(2, 5)} for i in range(4)]
    )
    assert batch["pixel_values"].shape == (2, 4, 3, 8, 8) and batch["crop_boxes"].shape == (2, 4, 5)
    assert batch["pixel_values"][0, :, 0, 0, 0].tolist() == [0, 1, 2, 3]
