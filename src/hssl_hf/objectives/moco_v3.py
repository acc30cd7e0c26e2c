"""MoCo: find the other view of an image among other images, of the batch (v3, arXiv 2104.02057) or of a queue."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from hssl_hf.modules.projection_heads import contrastive_mlp
from hssl_hf.objectives.discrepancy import discrepancy
from hssl_hf.objectives.supervision import Objective, ObjectiveInputs, ObjectiveOutput, combine, learners, teachers


class ContrastiveHeads(nn.Module):
    """A projector and a predictor for every branch that learns, or one for all; the teacher has no predictors."""

    def __init__(self, widths: dict[str, int], config):
        super().__init__()
        self.shared, hidden, output = config.shared_projection, config.projection_hidden_size, config.projection_size
        self.projectors, self.predictors = nn.ModuleDict(), nn.ModuleDict()
        for name, width in widths.items():
            self.projectors[name] = contrastive_mlp(width, hidden, hidden, output)
            self.predictors[name] = contrastive_mlp(output, hidden, output)

    def project(self, branch: str, cls: Tensor) -> Tensor:
        return self.projectors["shared" if self.shared else branch](cls)

    def predict(self, branch: str, projected: Tensor) -> Tensor:
        return self.predictors["shared" if self.shared else branch](projected)

    def has(self, branch: str) -> bool:
        return self.shared or branch in self.projectors


class MoCoV3(Objective):
    """Every learner's query of one view is to find its teacher's key of the other view among keys of other images.

    Those are the other keys of the batch, of all processes, or with `queue_size` the keys of earlier batches.

    Source: MoCo v3, algorithm 1; MoCo, arXiv 1911.05722, section 3.1, for the queue; with an auxiliary head: HSSL, equation 11.
    Differs: HSSL writes the loss with a queue and names MoCo v3, which has none; both forms have the heads of MoCo v3 here, and
        its factor 2T. The sum of equation 11 is over other images alone; here it has the positive too, as in MoCo.
    """

    num_views = 2
    supports_local_views = False
    heads_class = ContrastiveHeads

    def __init__(self, config):
        super().__init__(config)
        self.in_batch_negatives = not config.queue_size
        names = teachers(self.cls_arrows) if config.queue_size else []
        self.queues = nn.ModuleDict({name: Queue(config.queue_size, config.projection_size) for name in names})

    def remove_student_only_modules(self, heads: nn.Module) -> None:
        """Remove what only a student has from the teacher's copy of the heads: the predictors."""
        heads.predictors = nn.ModuleDict()

    def forward(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Compare the class tokens (2, B, C) of two global views."""
        heads, teacher_heads = inputs.student_heads, inputs.teacher_heads
        queries = {
            name: [heads.predict(name, heads.project(name, view)) for view in getattr(inputs.student, name).cls]
            for name in learners(self.cls_arrows)
        }
        with torch.no_grad():
            keys = {
                name: [F.normalize(teacher_heads.project(name, view).float(), dim=1) for view in cls]
                for name, cls in inputs.projected_teacher_cls().items()
            }
        losses = {}
        for teacher, learner in self.cls_arrows:
            queue = self.queues[teacher] if self.queues else None
            (query1, query2), (key1, key2) = queries[learner], keys[teacher]
            losses[f"cls_{teacher}_to_{learner}"] = self._contrast(query1, key2, queue) + self._contrast(query2, key1, queue)
        for name, queue in self.queues.items():
            queue.collect(torch.cat(keys[name]))
        output = ObjectiveOutput(combine(losses, self.config.reduction), losses)
        if keys.keys() == {"base", "auxiliary"}:
            base, auxiliary = (torch.cat(views) for views in keys.values())
            output.discrepancy = discrepancy(base, auxiliary, self.config.contrastive_temperature)
        return output

    def _contrast(self, queries: Tensor, keys: Tensor, queue: "Queue | None" = None) -> Tensor:
        """InfoNCE of (B, d) queries against the (B, d) keys of length 1 of their images and of others, times 2T.

        Args:
            queue: where the others are; None for the batch of all processes.
        """
        temperature = self.config.contrastive_temperature
        queries = F.normalize(queries.float(), dim=1)
        if queue is not None:
            own = (queries * keys).sum(1, keepdim=True)
            logits = torch.cat([own, queries @ queue.keys.float().T], dim=1)
            labels = torch.zeros(len(queries), dtype=torch.long, device=logits.device)
        else:
            first = dist.get_rank() * len(keys) if dist.is_initialized() else 0
            logits = queries @ gather(keys).T
            labels = torch.arange(first, first + len(queries), device=logits.device)
        return F.cross_entropy(logits / temperature, labels) * 2 * temperature


class Queue(nn.Module):
    """The newest keys of all processes, first in, first out.

    Keys are collected while gradients accumulate and enter in `update`, once per optimizer step, so that no image meets a key
    of its own batch as a negative.

    Args:
        length: number of keys; at first random directions.
        size: channels of a key.
    Source: MoCo, arXiv 1911.05722, algorithm 1.
    """

    def __init__(self, length: int, size: int):
        super().__init__()
        with torch.random.fork_rng():  # leaves the values of everything else as they are without a queue
            self.register_buffer("keys", F.normalize(torch.randn(length, size), dim=1))
        self.register_buffer("queue_pointer", torch.zeros((), dtype=torch.long))
        self._collected: list[Tensor] = []

    def collect(self, keys: Tensor) -> None:
        """Add (n, size) keys of one batch; nothing in an evaluation."""
        if self.training:
            self._collected.append(keys.detach())

    @torch.no_grad()
    def update(self) -> None:
        if not self._collected:
            return
        keys = gather(torch.cat(self._collected))[-len(self.keys) :]
        self._collected = []
        indices = (self.queue_pointer + torch.arange(len(keys), device=keys.device)) % len(self.keys)
        self.keys.index_copy_(0, indices, keys.to(self.keys.dtype))
        self.queue_pointer.copy_((self.queue_pointer + len(keys)) % len(self.keys))


def gather(keys: Tensor) -> Tensor:
    """(n, d) of every process -> (processes * n, d), in the order of the processes; without gradient."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return keys
    gathered = [torch.empty_like(keys) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, keys.contiguous())
    return torch.cat(gathered)
