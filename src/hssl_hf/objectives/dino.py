"""DINO: cross-entropy between what teacher and student say of different views of an image (arXiv 2104.14294)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hssl_hf.modules.projection_heads import Projection, Prototypes, similarity
from hssl_hf.modules.tokens import Branches
from hssl_hf.objectives.discrepancy import discrepancy
from hssl_hf.objectives.supervision import Center, ObjectiveOutput, combine, learners, projected_widths, teachers

if TYPE_CHECKING:
    from hssl_hf.models.configuration_hssl import HSSLConfig


class DistillationHeads(nn.Module):
    """A projection for every branch that learns (or one for all), and prototypes that all branches and levels share.

    Source: released HSSL code: two projections, one shared layer of prototypes (Table 16).
    """

    def __init__(self, widths: dict[str, int], config: "HSSLConfig"):
        super().__init__()
        widths = projected_widths(widths, config)
        self.shared = config.shared_projection
        self.prototypes = Prototypes(config.projection_size, config.num_prototypes, config.learned_prototype_length)
        self.projections = nn.ModuleDict()
        for name, width in widths.items():
            self.projections[name] = Projection(width, config.projection_hidden, config.projection_size)

    def project(self, branch: str, tokens: Tensor) -> Tensor:
        """(..., C) of a branch -> (..., bottleneck), length 1."""
        return self.projections["shared" if self.shared else branch](tokens)

    def has(self, branch: str) -> bool:
        return self.shared or branch in self.projections


class DINO(nn.Module):
    """Every learner predicts, from each of its views, what its teacher says of the other views."""

    in_batch = False  # no term couples the images of a batch, so gradients may accumulate
    num_views = None
    takes_locals = True

    def __init__(self, config: "HSSLConfig"):
        super().__init__()
        self.config = config
        self.cls_arrows = config.cls_arrows
        self.cls_centers = self._centers(self.cls_arrows)

    def _centers(self, arrows) -> nn.ModuleDict:
        config = self.config
        return nn.ModuleDict({name: Center(config.num_prototypes, config.center_momentum) for name in teachers(arrows)})

    def make_heads(self, widths: dict[str, int]) -> nn.Module:
        """Heads for branches of these widths."""
        return DistillationHeads(widths, self.config)

    def drop_student_parts(self, heads: nn.Module) -> None:
        """Remove what only a student has from the teacher's copy of the heads: nothing here."""

    def forward(
        self,
        student: Branches,
        local: Branches | None,
        teacher: Branches,
        heads: nn.Module,
        teacher_heads: nn.Module,
        *,
        masks: Tensor | None = None,
        masked_indices: Tensor | None = None,
        temperature: float,
        prototypes: tuple[Tensor, Tensor] | None = None,
    ) -> ObjectiveOutput:
        """
        Args:
            student: cls (V, B, C) of the global views.
            local: cls (L, B, C) of the local views, or None.
            teacher: cls (V, B, C) of the global views, without gradient.
            heads, teacher_heads: from `make_heads`.
            masks, masked_indices: unused here.
            temperature: tau_t of the teacher.
            prototypes: of student and teacher, where they have been worked out already (`prototypes_of`).
        """
        prototypes = prototypes or prototypes_of(heads, teacher_heads)
        return self._compare_cls(student, local, teacher, heads, teacher_heads, *prototypes, temperature)

    def _compare_cls(self, student, local, teacher, heads, teacher_heads, prototypes, teacher_prototypes, temperature):
        """The image level."""
        targets, output = self._targets(teacher, teacher_heads, teacher_prototypes, temperature)
        logits = {name: self._student_logits(name, student, local, heads, prototypes) for name in learners(self.cls_arrows)}
        terms = {
            f"cls_{teacher_name}_to_{learner}": cross_view_loss(targets[teacher_name], logits[learner])
            for teacher_name, learner in self.cls_arrows
        }
        output.loss = combine(terms, self.config.reduction)
        output.parts = {**terms, **output.parts, **self._watched(targets, logits)}
        return output

    def _student_logits(self, name: str, student: Branches, local: Branches | None, heads, prototypes: Tensor) -> Tensor:
        """Logits (V + L, B, K) over tau_s of all views."""
        cls = getattr(student, name).cls
        if local is not None:
            cls = torch.cat([cls, getattr(local, name).cls])
        return similarity(heads.project(name, cls), prototypes) / self.config.student_temperature

    @torch.no_grad()
    def _watched(self, targets: dict[str, Tensor], logits: dict[str, Tensor]) -> dict[str, Tensor]:
        """How sure the learners are, and how often they give their teacher's first answer for another view."""
        views = len(next(iter(targets.values())))  # the global ones are enough
        logits = {name: value[:views] for name, value in logits.items()}
        watched = {f"student_entropy_{name}": entropies(value.softmax(-1)).mean() for name, value in logits.items()}
        for teacher, learner in self.cls_arrows:
            agree = logits[learner].argmax(-1) == targets[teacher].argmax(-1).roll(1, 0)
            watched[f"agreement_{teacher}_to_{learner}"] = agree.float().mean()
        return watched

    @torch.no_grad()
    def _targets(
        self, teacher: Branches, heads, prototypes: Tensor, temperature: float
    ) -> tuple[dict[str, Tensor], ObjectiveOutput]:
        """Targets (V, B, K) of every teaching branch; collects the centres and measures the discrepancy."""
        measured = [n for n in ("base", "auxiliary") if getattr(teacher, n) is not None and heads.has(n)]
        logits = {name: similarity(heads.project(name, getattr(teacher, name).cls), prototypes) for name in measured}
        targets = {}
        for name in teachers(self.cls_arrows):
            center = self.cls_centers[name]
            targets[name] = torch.softmax((logits[name] - center.value) / temperature, dim=-1)
            center.collect(logits[name].mean((0, 1)))
        output = ObjectiveOutput(loss=None)
        for name, target in targets.items():
            centre, entropy = target.mean((0, 1)), entropies(target).mean()
            output.parts[f"teacher_entropy_{name}"] = entropy
            output.parts[f"teacher_spread_{name}"] = entropies(centre) - entropy
        if len(measured) == 2:
            flat = [value.flatten(0, 1) for value in logits.values()]
            output.discrepancy = discrepancy(*(value - value.mean(0) for value in flat), temperature)
            output.parts["discrepancy_raw"] = discrepancy(*flat)
        return targets, output

    def update(self) -> None:
        """Once per optimizer step."""
        for module in self.modules():
            if isinstance(module, Center):
                module.update()


def prototypes_of(heads: nn.Module, teacher_heads: nn.Module) -> tuple[Tensor, Tensor]:
    """Prototypes (K, bottleneck) of student and teacher, the latter without gradient; once per step is enough."""
    with torch.no_grad():
        teacher = teacher_heads.prototypes()
    return heads.prototypes(), teacher


def entropies(probabilities: Tensor) -> Tensor:
    """(..., K) -> (...) in nats."""
    return -(probabilities * probabilities.clamp(min=1e-12).log()).sum(-1)


def cross_view_loss(targets: Tensor, logits: Tensor) -> Tensor:
    """Mean over images and over all pairs of different views of the cross-entropy of logits against targets.

    The targets of the other views are added up before the logits are touched, so that every view is normalised once.

    Args:
        targets: (V, B, K) probabilities.
        logits: (V + L, B, K) already divided by the temperature; the first V are of the targets' views.
    Returns:
        a scalar.
    Source: DINO, equation 3; released HSSL code.
    """
    views, seen_by_teacher = len(logits), len(targets)
    others = targets.sum(0).expand(views, *targets.shape[1:]).clone()
    others[:seen_by_teacher] -= targets
    weights = others.sum(-1)  # the targets' own sum, so that rounding cancels
    losses = weights * logits.logsumexp(-1) - (others * logits).sum(-1)
    return losses.mean(1).sum() / (seen_by_teacher * (views - 1))
