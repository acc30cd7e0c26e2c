"""HSSLForPreTraining: student, momentum teacher and objective in one transformers model."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from hssl_hf.models.configuration_hssl import HSSLConfig
from hssl_hf.models.modeling_student_teacher import StudentTeacherPreTrainedModel
from hssl_hf.models.modeling_two_branch import build_network
from hssl_hf.objectives import OBJECTIVES, ObjectiveInputs


@dataclass
class HSSLForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss: scalar to minimize.
        losses: its terms, scalars by name (for example "cls_auxiliary_to_base").
        metrics: monitored scalars by name, which are not part of the loss.
        discrepancy: scalar, divergence between the teacher's base and head; None without a head.
        teacher_pooler_output: (V * B, C) the teacher's class tokens of the global views.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    metrics: dict[str, Tensor] | None = None
    discrepancy: Tensor | None = None
    teacher_pooler_output: Tensor | None = None


class HSSLForPreTraining(StudentTeacherPreTrainedModel):
    """Pre-train a base model with a heterogeneous auxiliary head, on top of DINO, iBOT or MoCo v3.

    The teacher is a frozen submodule: call `update_teacher` after every optimizer step. Only `student` is to be optimized;
    only its base (or the teacher's) is kept afterwards.

    Example:
        model = HSSLForPreTraining(HSSLConfig(backbone="vit_small_patch16_224", auxiliary="convnext"))
        output = model(pixel_values, local_pixel_values, bool_masked_pos, teacher_temperature=0.04)

    Source: HSSL; the released code where it differs from the paper.
    """

    config_class = HSSLConfig

    def __init__(self, config: HSSLConfig):
        super().__init__(config)
        objective = OBJECTIVES[config.objective](config)
        auxiliary_patches = any("auxiliary" in arrow for arrow in config.patch_supervision)
        self.student = build_network(config, objective, auxiliary_patches)
        self.teacher = copy.deepcopy(self.student)
        self.teacher.base.mask_token = None
        objective.remove_student_only_modules(self.teacher.heads)
        self.objective = objective
        adopt_requirements(self, objective)
        self._finish_init()

    def forward(
        self,
        pixel_values: Tensor,
        local_pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        mask_indices: Tensor | None = None,
        teacher_temperature: float = 0.07,
    ) -> HSSLForPreTrainingOutput:
        """
        Args:
            pixel_values: (V, B, 3, H, W) normalized global views, for student and teacher.
            local_pixel_values: (L, B, 3, h, w) normalized local views, for the student alone.
            bool_masked_pos: (V, B, h, w) bool over the patches, True = masked in the student's input.
            mask_indices: (M,) positions of the masked patches in the flattened mask; avoids waiting for the device.
            teacher_temperature: tau_t (dino, ibot).
        Raises:
            ValueError: if the objective does not take these numbers of views.
        """
        self.check_views(len(pixel_values), 0 if local_pixel_values is None else len(local_pixel_values))
        with torch.no_grad():  # first, so that its temporary tensors never coexist with those kept for the backward pass
            teacher = self.teacher(pixel_values)
        student = self.student(pixel_values, bool_masked_pos)
        local = None if local_pixel_values is None else self.student(local_pixel_values)
        heads = (self.student.heads, self.teacher.heads)
        views = (bool_masked_pos, mask_indices, teacher_temperature)
        output = self.objective(ObjectiveInputs(student, teacher, *heads, local, *views))
        return HSSLForPreTrainingOutput(
            output.loss, output.losses, output.metrics, output.discrepancy, teacher.base.cls.flatten(0, 1)
        )

    def update_teacher(self, momentum: float) -> None:
        """After the optimizer step: move the teacher towards the student and the centers towards the last batch."""
        super().update_teacher(momentum)
        self.objective.update()

    def freezable_parameters(self) -> dict[str, list[nn.Parameter]]:
        prototypes = getattr(self.student.heads, "prototypes", None)
        last_layer = {} if prototypes is None else {"prototypes": list(prototypes.parameters())}
        return super().freezable_parameters() | last_layer


def adopt_requirements(model: StudentTeacherPreTrainedModel, objective: nn.Module) -> None:
    """What the objective and the arrows of a model require of the training loop."""
    config = model.config
    model.num_views, model.supports_local_views = objective.num_views, objective.supports_local_views
    model.in_batch_negatives = objective.in_batch_negatives
    model.masked_views = None if config.patch_supervision else 0
    learners = {learner for _, learner in (*config.cls_arrows, *config.patch_arrows)}
    model.has_unused_parameters = "base" not in learners  # its final norm
