"""iBOT: DINO, and the same between hidden patches and what the teacher sees there (arXiv 2111.07832)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hssl_hf.modules.projection_heads import similarity
from hssl_hf.modules.tokens import Branches
from hssl_hf.objectives.dino import DINO, prototypes_of
from hssl_hf.objectives.supervision import ObjectiveOutput, combine, learners, teachers

if TYPE_CHECKING:
    from hssl_hf.models.configuration_hssl import HSSLConfig


class IBOT(DINO):
    """Prototypes are compared on class tokens and hidden patches only.

    This is exact: the loss reads no other patch, and the centre of the patches, a mean over all of them, passes through the
    prototypes as one vector, because they are linear.
    """

    def __init__(self, config: "HSSLConfig"):
        super().__init__(config)
        self.patch_arrows = config.patch_arrows
        self.patch_centers = self._centers(self.patch_arrows)

    def forward(
        self,
        student: Branches,
        local: Branches | None,
        teacher: Branches,
        heads: nn.Module,
        teacher_heads: nn.Module,
        *,
        masks: Tensor,
        masked_indices: Tensor | None = None,
        temperature: float,
        prototypes: tuple[Tensor, Tensor] | None = None,
    ) -> ObjectiveOutput:
        """As `DINO.forward`, with patches (V, B, h, w, C) in student and teacher.

        Args:
            masks: (V, B, h, w) bool, True = hidden from the student.
            masked_indices: (M,) their positions in the flattened masks; worked out here if None.
        """
        both = (heads, teacher_heads, *(prototypes or prototypes_of(heads, teacher_heads)))
        output = self._compare_cls(student, local, teacher, *both, temperature)
        if self.patch_arrows:
            terms = self.compare_patches(student, teacher, *both, masks, masked_indices, temperature)
            output.loss = output.loss + combine(terms, self.config.reduction)
            output.parts |= terms
        return output

    def compare_patches(
        self,
        student: Branches,
        teacher: Branches,
        heads: nn.Module,
        teacher_heads: nn.Module,
        prototypes: Tensor,
        teacher_prototypes: Tensor,
        masks: Tensor | None,
        masked_indices: Tensor | None,
        temperature: float,
    ) -> dict[str, Tensor]:
        """The patch level alone: a term for every arrow. Prototypes (K, bottleneck); everything else as in `forward`."""
        if masks is None:
            raise ValueError("the objective 'ibot' needs masks (V, B, h, w), got None")
        if masked_indices is None:
            masked_indices = masks.flatten().nonzero().flatten()
        targets = self._patch_targets(teacher, teacher_heads, teacher_prototypes, masked_indices, temperature)
        weights = self._weights(masks, masked_indices)
        logits = {n: self._patch_logits(n, student, heads, prototypes, masked_indices) for n in learners(self.patch_arrows)}
        terms = {}
        for name, learner in self.patch_arrows:
            s, t = logits[learner], targets[name]
            terms[f"patch_{name}_to_{learner}"] = (weights * (t.sum(-1) * s.logsumexp(-1) - (t * s).sum(-1))).sum()
        return terms

    def _patch_logits(self, name: str, student: Branches, heads, prototypes: Tensor, indices: Tensor) -> Tensor:
        """Logits (M, K) over tau_s of the hidden patches."""
        patches = getattr(student, name).patches.flatten(0, 3).index_select(0, indices)
        return similarity(heads.project(name, patches), prototypes) / self.config.student_temperature

    @torch.no_grad()
    def _patch_targets(
        self, teacher: Branches, heads, prototypes: Tensor, indices: Tensor, temperature: float
    ) -> dict[str, Tensor]:
        targets = {}
        for name in teachers(self.patch_arrows):
            center = self.patch_centers[name]
            projected = heads.project(name, getattr(teacher, name).patches.flatten(0, 3))
            with torch.autocast(projected.device.type, enabled=False):
                center.collect(similarity(projected.mean(0), prototypes))
            logits = similarity(projected.index_select(0, indices), prototypes)
            targets[name] = torch.softmax((logits - center.value) / temperature, dim=-1)
        return targets

    @staticmethod
    def _weights(masks: Tensor, indices: Tensor) -> Tensor:
        """(M,) weights: the mean over the hidden patches of a view, then over all views, those without hidden ones included."""
        views, images = masks.shape[:2]
        shares = 1 / masks.flatten(2).sum(-1).clamp(min=1).float()
        return shares[..., None].expand(-1, -1, masks[0, 0].numel()).flatten()[indices] / (views * images)
