"""HSSLForPreTraining: student, momentum teacher and objective in one transformers model."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from hssl_hf.models.configuration_hssl import HSSLConfig
from hssl_hf.models.modeling_student_teacher import StudentTeacherModel
from hssl_hf.models.modeling_two_branch import build_network
from hssl_hf.objectives import OBJECTIVES


@dataclass
class HSSLOutput(ModelOutput):
    """
    Args:
        loss: scalar to minimise.
        parts: its terms and what is worth watching, by name (for example "cls_auxiliary_to_base").
        discrepancy: scalar, how differently the teacher's base and head describe the images; None without a head.
        features: (V * B, C) the teacher's class tokens of the global views, to be watched.
    """

    loss: Tensor | None = None
    parts: dict[str, Tensor] | None = None
    discrepancy: Tensor | None = None
    features: Tensor | None = None


class HSSLForPreTraining(StudentTeacherModel):
    """Pre-train a base model with a heterogeneous auxiliary head, on top of DINO, iBOT or MoCo v3.

    The teacher is a frozen submodule that follows the student: call `update_teacher` after every optimizer step. Only
    `student` is to be optimised; only its base (or the teacher's) is worth keeping afterwards.

    Example:
        model = HSSLForPreTraining(HSSLConfig(backbone="vit_small_patch16_224", auxiliary="convnext"))
        output = model(global_pixels, local_pixels, masks, teacher_temperature=0.04)

    Source: HSSL; released code where paper and code part.
    """

    config_class = HSSLConfig

    def __init__(self, config: HSSLConfig):
        super().__init__(config)
        objective = OBJECTIVES[config.objective](config)
        auxiliary_patches = any("auxiliary" in arrow for arrow in config.patch_supervision)
        self.student = build_network(config, objective, auxiliary_patches)
        self.teacher = copy.deepcopy(self.student)
        self.teacher.base.mask_token = None
        objective.drop_student_parts(self.teacher.heads)
        self.objective = objective
        self.num_views, self.takes_locals = objective.num_views, objective.takes_locals
        self.in_batch = objective.in_batch
        self.masked_views = None if config.patch_supervision else 0
        arrows = (*config.cls_supervision, *config.patch_supervision)
        self.leaves_parameters_idle = not any(arrow.endswith("base") for arrow in arrows)  # the norm of the base
        self.complete()

    def forward(
        self,
        global_pixels: Tensor,
        local_pixels: Tensor | None = None,
        masks: Tensor | None = None,
        masked_indices: Tensor | None = None,
        teacher_temperature: float = 0.07,
    ) -> HSSLOutput:
        """
        Args:
            global_pixels: (V, B, 3, H, W) normalised global views, seen by student and teacher.
            local_pixels: (L, B, 3, h, w) normalised local views, seen by the student alone.
            masks: (V, B, h, w) bool over the patches, True = hidden from the student.
            masked_indices: (M,) positions of the hidden patches in the flattened masks; saves waiting for the device.
            teacher_temperature: tau_t (dino, ibot).
        Raises:
            ValueError: if the numbers of views do not suit the objective.
        """
        self.check_views(len(global_pixels), 0 if local_pixels is None else len(local_pixels))
        with torch.no_grad():  # first, so that its passing tensors never lie beside those kept for the backward pass
            teacher = self.teacher(global_pixels)
        student = self.student(global_pixels, masks)
        local = None if local_pixels is None else self.student(local_pixels)
        output = self.objective(
            student, local, teacher, self.student.heads, self.teacher.heads,
            masks=masks, masked_indices=masked_indices, temperature=teacher_temperature,
        )  # fmt: skip
        features = teacher.base.cls.flatten(0, 1)
        return HSSLOutput(loss=output.loss, parts=output.parts, discrepancy=output.discrepancy, features=features)

    def update_teacher(self, momentum: float) -> None:
        """After the optimizer step: move the teacher towards the student and the centres towards the last batch."""
        super().update_teacher(momentum)
        self.objective.update()

    def parts(self) -> dict[str, list[nn.Parameter]]:
        prototypes = getattr(self.student.heads, "prototypes", None)
        return {**super().parts(), **({} if prototypes is None else {"prototypes": list(prototypes.parameters())})}
