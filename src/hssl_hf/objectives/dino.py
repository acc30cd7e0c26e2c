"""DINO: cross-entropy between the outputs of teacher and student for different views of an image (arXiv 2104.14294)."""

import torch
from torch import Tensor, nn

from hssl_hf.modules.projection_heads import DINOProjectionHead, Prototypes, prototype_logits
from hssl_hf.objectives.discrepancy import discrepancy
from hssl_hf.objectives.supervision import Center, Objective, ObjectiveInputs, ObjectiveOutput, combine, learners, teachers


class DINOHeads(nn.Module):
    """A projection for every branch that learns (or one for all), and prototypes that all branches and levels share.

    Source: released HSSL code: two projections, one shared layer of prototypes (Table 16).
    """

    def __init__(self, widths: dict[str, int], config):
        super().__init__()
        self.shared = config.shared_projection
        self.prototypes = Prototypes(config.projection_size, config.num_prototypes, config.norm_last_layer)
        sizes = (config.projection_hidden_size, config.projection_size)
        self.projections = nn.ModuleDict({name: DINOProjectionHead(width, *sizes) for name, width in widths.items()})

    def project(self, branch: str, tokens: Tensor) -> Tensor:
        """(..., C) of a branch -> (..., bottleneck), length 1."""
        return self.projections["shared" if self.shared else branch](tokens)

    def has(self, branch: str) -> bool:
        return self.shared or branch in self.projections


class DINO(Objective):
    """Every learner predicts, from each of its views, its teacher's output for the other views."""

    heads_class = DINOHeads

    def __init__(self, config):
        super().__init__(config)
        values = (config.num_prototypes, config.center_momentum)
        self.cls_centers = nn.ModuleDict({name: Center(*values) for name in teachers(self.cls_arrows)})
        self.patch_centers = nn.ModuleDict({name: Center(*values) for name in teachers(self.patch_arrows)})

    def forward(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """The image level, from class tokens alone."""
        return self._compare_cls(inputs, *prototypes_of(inputs.student_heads, inputs.teacher_heads))

    def _compare_cls(self, inputs: ObjectiveInputs, prototypes: Tensor, teacher_prototypes: Tensor) -> ObjectiveOutput:
        teacher_logits, targets = self._targets(inputs, teacher_prototypes)
        logits = {}
        for name in learners(self.cls_arrows):
            views = [getattr(tokens, name).cls for tokens in (inputs.student, inputs.local) if tokens is not None]
            logits[name] = self._student_logits(name, torch.cat(views), inputs, prototypes)
        losses = {
            f"cls_{teacher}_to_{learner}": cross_view_loss(targets[teacher], logits[learner])
            for teacher, learner in self.cls_arrows
        }
        output = ObjectiveOutput(combine(losses, self.config.reduction), losses, self._metrics(targets, logits))
        if teacher_logits.keys() == {"base", "auxiliary"}:
            flat = [value.flatten(0, 1) for value in teacher_logits.values()]
            output.discrepancy = discrepancy(*(value - value.mean(0) for value in flat), inputs.teacher_temperature)
            output.metrics["discrepancy_raw"] = discrepancy(*flat)
        return output

    def _student_logits(self, name: str, tokens: Tensor, inputs: ObjectiveInputs, prototypes: Tensor) -> Tensor:
        """Logits (..., K) over tau_s of tokens (..., C) of a branch."""
        return prototype_logits(inputs.student_heads.project(name, tokens), prototypes) / self.config.student_temperature

    @torch.no_grad()
    def _targets(self, inputs: ObjectiveInputs, prototypes: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Logits (V, B, K) of projected branches, and centered, sharpened targets of teaching ones; collects the centers."""
        heads, cls = inputs.teacher_heads, inputs.projected_teacher_cls()
        logits = {name: prototype_logits(heads.project(name, tokens), prototypes) for name, tokens in cls.items()}
        targets = {}
        for name in teachers(self.cls_arrows):
            center = self.cls_centers[name]
            targets[name] = torch.softmax((logits[name] - center.value) / inputs.teacher_temperature, dim=-1)
            center.collect(logits[name].mean((0, 1)))
        return logits, targets

    @torch.no_grad()
    def _metrics(self, targets: dict[str, Tensor], logits: dict[str, Tensor]) -> dict[str, Tensor]:
        """Entropies, spread of the teacher's outputs, and how often a learner agrees with its teacher on another view."""
        metrics = {}
        for name, target in targets.items():
            entropy = entropies(target).mean()
            metrics[f"teacher_entropy_{name}"] = entropy
            metrics[f"teacher_spread_{name}"] = entropies(target.mean((0, 1))) - entropy
        views = len(next(iter(targets.values())))  # the global ones are enough
        logits = {name: value[:views] for name, value in logits.items()}
        metrics |= {f"student_entropy_{name}": entropies(value.softmax(-1)).mean() for name, value in logits.items()}
        for teacher, learner in self.cls_arrows:
            agree = logits[learner].argmax(-1) == targets[teacher].argmax(-1).roll(1, 0)
            metrics[f"agreement_{teacher}_to_{learner}"] = agree.float().mean()
        return metrics


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

    The targets of the other views are summed first, so that the logits of every view are normalized once.

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
