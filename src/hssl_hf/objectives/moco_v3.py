"""MoCo v3: find the other view of an image among all images of the batch (arXiv 2104.02057)."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from hssl_hf.configuration_hssl import HSSLConfig, parse_arrows
from hssl_hf.discrepancy import discrepancy
from hssl_hf.heads import contrastive_predictor, contrastive_projector
from hssl_hf.objectives.supervision import ObjectiveOutput, combine, learners
from hssl_hf.tokens import Branches


class ContrastiveHeads(nn.Module):
    """A projector and a predictor for every branch that learns, or one for all; the teacher has no predictors."""

    def __init__(self, width: int, config: HSSLConfig):
        super().__init__()
        names = ["shared"] if config.shared_projection else learners(parse_arrows(config.cls_supervision))
        self.shared = config.shared_projection
        self.projectors, self.predictors = nn.ModuleDict(), nn.ModuleDict()
        for name in sorted(names, reverse=True):  # the base first: its values do not depend on whether there is a head
            self.projectors[name] = contrastive_projector(width, config.projection_hidden, config.projection_size)
            self.predictors[name] = contrastive_predictor(config.projection_size, config.projection_hidden)

    def project(self, branch: str, cls: Tensor) -> Tensor:
        return self.projectors["shared" if self.shared else branch](cls)

    def predict(self, branch: str, projected: Tensor) -> Tensor:
        return self.predictors["shared" if self.shared else branch](projected)

    def has(self, branch: str) -> bool:
        return self.shared or branch in self.projectors


class MoCoV3(nn.Module):
    """Every learner's query of one view is to find its teacher's key of the other view among the keys of all processes.

    Source: MoCo v3, algorithm 1; with an auxiliary head: HSSL, equation 11, with the keys of the batch instead of a queue.
    """

    in_batch = True  # every image is compared with the batch, so a batch cannot be taken in parts
    num_views = 2
    takes_locals = False

    def __init__(self, config: HSSLConfig):
        super().__init__()
        self.config = config
        self.arrows = parse_arrows(config.cls_supervision)

    def make_heads(self, width: int) -> nn.Module:
        return ContrastiveHeads(width, self.config)

    def drop_student_parts(self, heads: nn.Module) -> None:
        """Remove what only a student has from the teacher's copy of the heads: the predictors."""
        heads.predictors = nn.ModuleDict()

    def forward(
        self,
        student: Branches,
        local: None,
        teacher: Branches,
        heads,
        teacher_heads,
        *,
        masks=None,
        masked_indices=None,
        temperature: float | None = None,
    ) -> ObjectiveOutput:
        """
        Args:
            student, teacher: cls (2, B, C).
            local, masks, masked_indices, temperature: unused here.
        """  # fmt: skip
        queries = {
            name: [heads.predict(name, heads.project(name, view)) for view in getattr(student, name).cls]
            for name in learners(self.arrows)
        }
        with torch.no_grad():
            measured = [n for n in ("base", "auxiliary") if getattr(teacher, n) is not None and teacher_heads.has(n)]
            keys = {
                name: [F.normalize(teacher_heads.project(name, view).float(), dim=1) for view in getattr(teacher, name).cls]
                for name in measured
            }
        terms = {
            f"cls_{name}_to_{learner}": self._contrast(queries[learner][0], keys[name][1])
            + self._contrast(queries[learner][1], keys[name][0])
            for name, learner in self.arrows
        }
        output = ObjectiveOutput(combine(terms, self.config.reduction), terms)
        if len(measured) == 2:
            base, auxiliary = (torch.cat(keys[name]) for name in measured)
            output.discrepancy = discrepancy(base, auxiliary, self.config.contrastive_temperature)
        return output

    def _contrast(self, queries: Tensor, keys: Tensor) -> Tensor:
        """InfoNCE of (B, d) queries against the (B, d) keys of length 1 of all processes, times 2T."""
        temperature, first = self.config.contrastive_temperature, 0
        if dist.is_initialized() and dist.get_world_size() > 1:
            gathered = [torch.empty_like(keys) for _ in range(dist.get_world_size())]
            dist.all_gather(gathered, keys)
            first, keys = dist.get_rank() * len(keys), torch.cat(gathered)
        logits = F.normalize(queries.float(), dim=1) @ keys.T / temperature
        labels = torch.arange(first, first + len(queries), device=logits.device)
        return F.cross_entropy(logits, labels) * 2 * temperature

    def update(self) -> None:
        """Nothing is kept from step to step."""
