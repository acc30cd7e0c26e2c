"""HSSLForPreTraining: student, momentum teacher and objective in one transformers model."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from hssl_hf.models.configuration_hssl import HSSLConfig
from hssl_hf.models.modeling_base import EncoderModel
from hssl_hf.models.modeling_student_teacher import StudentTeacherPreTrainedModel
from hssl_hf.models.modeling_two_branch import TwoBranchNetwork, build_base
from hssl_hf.objectives import OBJECTIVES
from hssl_hf.objectives.supervision import Objective, ObjectiveInputs, ObjectiveOutput


@dataclass
class HSSLForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss: scalar to minimize; None with `return_loss=False`.
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


class ObjectivePreTrainedModel(StudentTeacherPreTrainedModel):
    """Base class of the methods that compare the representations of student and teacher by an `Objective` or several."""

    def _finish_init(self) -> None:
        """Adopt what the objective and the arrows require of the training loop, and freeze what is not trained."""
        self.teacher.base.mask_token = None
        self._objectives = [module for module in self.modules() if isinstance(module, Objective)]
        objective = self._objectives[0]
        self.num_views, self.supports_local_views = objective.num_views, objective.supports_local_views
        self.in_batch_negatives = objective.in_batch_negatives
        self.equal_mask_counts = self.config.visible_patches_only
        self.masked_views = None if self.config.patch_supervision or self.config.visible_patches_only else 0
        self.has_unused_parameters = "base" not in self.config.learners  # its final norm
        super()._finish_init()

    def forward(
        self,
        pixel_values: Tensor,
        local_pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        mask_indices: Tensor | None = None,
        teacher_temperature: float = 0.07,
        return_loss: bool = True,
    ) -> HSSLForPreTrainingOutput:
        """
        Args:
            pixel_values: (V, B, 3, H, W) normalized global views, for student and teacher.
            local_pixel_values: (L, B, 3, h, w) normalized local views, for the student alone.
            bool_masked_pos: (V, B, h, w) bool over the patches, True = masked in the student's input; with
                `visible_patches_only` as many in every image.
            mask_indices: (M,) positions of the masked patches in the flattened mask; avoids waiting for the device.
            teacher_temperature: tau_t (dino, ibot).
            return_loss: False leaves the total `loss` out.
        Raises:
            ValueError: if the objective does not take these numbers of views.
        """
        self.check_views(len(pixel_values), 0 if local_pixel_values is None else len(local_pixel_values))
        with torch.no_grad():  # first, so that its temporary tensors never coexist with those kept for the backward pass
            teacher = self.teacher(pixel_values)
        student = self.student(pixel_values, bool_masked_pos, mask_indices)
        local = None if local_pixel_values is None else self.student(local_pixel_values)
        output = self._compare(student, teacher, local, (bool_masked_pos, mask_indices, teacher_temperature))
        values = vars(output) if return_loss else vars(output) | {"loss": None}
        return HSSLForPreTrainingOutput(**values, teacher_pooler_output=teacher.base.cls.flatten(0, 1))

    def _compare(self, student, teacher, local, masks_and_temperature: tuple) -> ObjectiveOutput:
        """The loss between the outputs of both networks, and of the student for the local views."""
        raise NotImplementedError

    def update_teacher(self, momentum: float) -> None:
        """After the optimizer step: move the teacher towards the student and the centers towards the last batch."""
        super().update_teacher(momentum)
        for objective in self._objectives:
            objective.update()

    def freezable_parameters(self) -> dict[str, list[nn.Parameter]]:
        prototypes = [p for name, p in self.student.heads.named_parameters() if "prototypes" in name]
        return super().freezable_parameters() | ({"prototypes": prototypes} if prototypes else {})


class HSSLForPreTraining(ObjectivePreTrainedModel):
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
        self.student = TwoBranchNetwork(config, objective)
        self.teacher = copy.deepcopy(self.student)
        objective.remove_student_only_modules(self.teacher.heads)
        self.objective = objective
        self._finish_init()

    def _compare(self, student, teacher, local, masks_and_temperature: tuple) -> ObjectiveOutput:
        heads = (self.student.heads, self.teacher.heads)
        return self.objective(ObjectiveInputs(student, teacher, *heads, local, *masks_and_temperature))


class HSSLModel(EncoderModel):
    """The teacher's base, for features or fine-tuning.

    Example:
        model = HSSLModel.from_pretrained("user/name", revision="training")
        features = model(pixel_values).pooler_output  # (B, C)
    """

    config_class = HSSLConfig
    base_model_prefix = HSSLForPreTraining.default_network
    build_base = staticmethod(build_base)
