"""iBOT: DINO, and the same between masked patches and the teacher's outputs at their positions (arXiv 2111.07832)."""

import torch
from torch import Tensor

from hssl_hf.modules.projection_heads import prototype_logits
from hssl_hf.objectives.dino import DINO, prototypes_of
from hssl_hf.objectives.supervision import ObjectiveInputs, ObjectiveOutput, combine, learners, teachers


class IBOT(DINO):
    """Prototypes are applied to class tokens and masked patches only.

    This is exact: the loss reads no other patch, and the center of the patches, a mean over all of them, passes through the
    prototypes as one vector, because they are linear.
    """

    def forward(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Image and patch level; student and teacher have patches (V, B, h, w, C), and `bool_masked_pos` is needed.

        Raises:
            ValueError: without a mask.
        """
        prototypes = prototypes_of(inputs.student_heads, inputs.teacher_heads)
        output = self._compare_cls(inputs, *prototypes)
        if self.patch_arrows:
            losses = self.compare_patches(inputs, *prototypes)
            output.loss = output.loss + combine(losses, self.config.reduction)
            output.losses |= losses
        return output

    def compare_patches(self, inputs: ObjectiveInputs, prototypes: Tensor, teacher_prototypes: Tensor) -> dict[str, Tensor]:
        """The patch level alone: a loss for every arrow. Prototypes: (K, bottleneck)."""
        mask, indices = inputs.bool_masked_pos, inputs.mask_indices
        if mask is None:
            raise ValueError("the objective 'ibot' needs bool_masked_pos (V, B, h, w), got None")
        if indices is None:
            indices = mask.flatten().nonzero().flatten()
        targets = self._patch_targets(inputs, teacher_prototypes, indices)
        weights = self._weights(mask, indices)
        logits = {}
        for name in learners(self.patch_arrows):
            patches = getattr(inputs.student, name).patches.flatten(0, 3).index_select(0, indices)
            logits[name] = self._student_logits(name, patches, inputs, prototypes)
        losses = {}
        for teacher, learner in self.patch_arrows:
            s, t = logits[learner], targets[teacher]
            cross_entropies = t.sum(-1) * s.logsumexp(-1) - (t * s).sum(-1)
            losses[f"patch_{teacher}_to_{learner}"] = (weights * cross_entropies).sum()
        return losses

    @torch.no_grad()
    def _patch_targets(self, inputs: ObjectiveInputs, prototypes: Tensor, indices: Tensor) -> dict[str, Tensor]:
        """Targets (M, K) of the masked patches; the centers are of all patches."""
        targets = {}
        for name in teachers(self.patch_arrows):
            center = self.patch_centers[name]
            projected = inputs.teacher_heads.project(name, getattr(inputs.teacher, name).patches.flatten(0, 3))
            with torch.autocast(projected.device.type, enabled=False):
                center.collect(prototype_logits(projected.mean(0), prototypes))
            logits = prototype_logits(projected.index_select(0, indices), prototypes)
            targets[name] = torch.softmax((logits - center.value) / inputs.teacher_temperature, dim=-1)
        return targets

    @staticmethod
    def _weights(mask: Tensor, indices: Tensor) -> Tensor:
        """(M,) weights: the mean over the masked patches of a view, then over all views, those without masked ones included."""
        views, images = mask.shape[:2]
        per_view = 1 / mask.flatten(2).sum(-1).clamp(min=1).float()
        return per_view[..., None].expand(-1, -1, mask[0, 0].numel()).flatten()[indices] / (views * images)
