"""Pre-training with transformers' `Trainer`: the teacher's update, and batches with a leading axis of views."""

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hssl_hf.engine.schedules import Cosine


class TeacherUpdateCallback(TrainerCallback):
    """Moves the teacher towards the student after every optimizer step of transformers' `Trainer`.

    The momentum follows half a cosine over all steps. It depends on the number of the step alone, so that a resumed
    training continues as an uninterrupted one. Freezing, the teacher's temperature, and clipping by parameter are left to
    `hssl-hf pretrain`.

    Example:
        Trainer(model, args, train_dataset=views, data_collator=collate_views, callbacks=[TeacherUpdateCallback()])

    Args:
        momentum: of the teacher at the start and at the end, in [0, 1].
    """

    def __init__(self, momentum: tuple[float, float] = (0.996, 1.0)):
        self.momentum = momentum

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: PreTrainedModel, **kwargs
    ) -> None:
        """`state.global_step` still is the number of finished steps without this one."""
        schedule = Cosine(*self.momentum, state.max_steps)
        model.update_teacher(schedule(state.global_step + model.teacher_updates_first))


def collate_views(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Images with V views each -> a batch with a leading view axis.

    Args:
        examples: arguments of the model's forward pass for one image, such as pixel_values (V, 3, H, W), local_pixel_values
            (L, 3, h, w), bool_masked_pos (V, h, w) and crop_boxes (V, 5).
    Returns:
        the same with the images as second axis, such as pixel_values (V, B, 3, H, W).
    """
    return {name: torch.stack([torch.as_tensor(example[name]) for example in examples], dim=1) for name in examples[0]}
