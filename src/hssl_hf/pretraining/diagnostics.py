"""Monitoring of a run: does the model still learn, and if not, why, and what helps?

Self-supervised losses also fall in a collapse, so other metrics are needed: how certain teacher and student are (entropy), how
much the teacher's predictions differ between images (KL to their center), the effective rank of the features (RankMe), how
often student and teacher agree, and the fraction of the loss in each term.
"""

import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from hssl_hf.data.files import append_line, write_below
from hssl_hf.errors import UserError
from hssl_hf.evaluation.label_free import rank_me
from hssl_hf.runs.run_directory import ALARMS

logger = logging.getLogger(__name__)
PATIENCE = 3  # lines of the log in a row; ours: one odd batch is no collapse
RANK_IMAGES = 256


@dataclass(frozen=True)
class Alarm:
    """
    Args:
        name: what is wrong, in a word.
        finding: the figures.
        cause: why that is bad, and where it usually comes from.
        remedy: what to change.
    """

    name: str
    finding: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.name}: {self.finding}. {self.cause} {self.remedy}"


def add_diagnostics(values: dict[str, float], terms: Iterable[str], features: Tensor | None) -> int | None:
    """Add RankMe and the fractions of the loss terms, where there are several, to a line of the log.

    Args:
        values: averages by name, to which they are added.
        terms: names of the terms of the loss.
        features: (N, C) of the teacher, of which at most 256 are used; or None.
    Returns:
        the largest value that RankMe could have; None without features.
    """
    sizes = {name: abs(values[name]) for name in terms}
    total = sum(sizes.values())
    if len(sizes) > 1 and total > 0:
        values |= {f"loss_fraction_{name}": size / total for name, size in sizes.items()}
    if features is None:
        return None
    used = features[:RANK_IMAGES].cpu()
    values["rank_me"] = rank_me(used) if len(used) > 1 and used.any() else 1.0
    return min(used.shape)


def diagnose(values: Mapping[str, float], prototypes: int | None = None, rank: int | None = None) -> list[Alarm]:
    """Alarms for one line of the log.

    Args:
        values: averages, by the names that the objectives give them.
        prototypes: K, of objectives that have prototypes.
        rank: the largest that `rank_me` could be.
    """
    return [*_metric_alarms(values, rank), *(_entropy_alarms(values, math.log(prototypes)) if prototypes else [])]


def _family(values: Mapping[str, float], prefix: str) -> list[tuple[str, float]]:
    """The metrics with a common prefix, by the rest of their names."""
    return [(name.removeprefix(prefix), value) for name, value in values.items() if name.startswith(prefix)]


def _entropy_alarms(values: Mapping[str, float], maximum: float):
    for branch, spread in _family(values, "teacher_spread_"):
        entropy = values[f"teacher_entropy_{branch}"]
        finding = (
            f"the {branch} teacher's predictions are {spread:.2g} nats from their mean; entropy {entropy:.2f} of {maximum:.2f}"
        )
        if spread < 0.01 * maximum and entropy > 0.9 * maximum:
            yield Alarm(
                "the teacher is uniform", finding, "All images get the same uniform prediction: the targets are too soft.",
                "Lower optim.teacher_temperature (0.04 at first), or raise model.center_momentum.",
            )  # fmt: skip
        elif spread < 0.01 * maximum:
            yield Alarm(
                "the teacher is constant", finding,
                "One prototype has won, because centering is too slow or batches are too small.",
                "Raise optim.teacher_temperature or optim.batch_size, or lower model.center_momentum and the learning rate.",
            )  # fmt: skip
    for _, entropy in _family(values, "student_entropy_"):
        if entropy > 0.97 * maximum:
            yield Alarm(
                "the student has learned nothing", f"its entropy is {entropy:.2f} of {maximum:.2f}, the loss is flat at ln K",
                "The learning rate is too low for the batch, or the prototypes are still frozen.",
                "Raise optim.base_learning_rate, shorten optim.warmup_epochs or optim.freeze_last_layer_epochs.",
            )  # fmt: skip


def _metric_alarms(values: Mapping[str, float], rank: int | None):
    if rank and rank >= 16 and values.get("rank_me", rank) < max(2.0, 0.03 * rank):
        yield Alarm(
            "the features fill few dimensions", f"RankMe is {values['rank_me']:.1f} of at most {rank}",
            "The network maps all images to a line or a plane.",
            "Lower optim.base_learning_rate, lengthen optim.warmup_epochs, or raise optim.batch_size.",
        )  # fmt: skip
    for arrow, fraction in _family(values, "agreement_"):
        if fraction > 0.995:
            yield Alarm(
                "the task is too easy", f"student and teacher agree on {100 * fraction:.1f} % of the images ({arrow})",
                "The two views of an image are too easy to match: weak augmentation, repeated images, or constant predictions.",
                "Strengthen views.jitter, views.global_crop_scale or views.global_crop_blur; remove duplicates from the data.",
            )  # fmt: skip
    for term, fraction in _family(values, "loss_fraction_"):
        if fraction < 0.005 and "_to_" in term:
            yield Alarm(
                "a term of the loss has no weight", f"{term} is {100 * fraction:.2f} % of the loss",
                "Its teacher is easy to predict, so that the other terms alone are learned.",
                "Compare the teachers' entropies; give the term another teacher (model.cls_supervision).",
            )  # fmt: skip
    if values.get("discrepancy", 1.0) < 1e-5:
        yield Alarm(
            "head and base agree", f"the discrepancy is {values['discrepancy']:.1g} nats",
            "A head that describes images as the base does has nothing to teach it.",
            "Set model.auxiliary_first_shortcut=false, another model.auxiliary, or model.auxiliary_init=xavier.",
        )  # fmt: skip
    if values.get("collapse", 0.0) > 0.98:
        yield Alarm(
            "the targets are all alike", f"{100 * values['collapse']:.1f} % of their energy is common to all",
            "The teacher has collapsed: nothing separates its predictions.",
            "Raise model.negative_weight, lower optim.base_learning_rate, or lengthen optim.warmup_epochs.",
        )  # fmt: skip


class TrainingMonitor:
    """Examines every line of the log and raises each alarm once, in `alarms.jsonl` and on the screen.

    Args:
        folder: folder of the run.
        prototypes: K, or None.
        first_step: nothing is judged before it: networks that have hardly moved look collapsed.
    """

    def __init__(self, folder: Path, prototypes: int | None, first_step: int):
        self.path, self.prototypes, self.first_step = folder / ALARMS, prototypes, first_step
        self.seen: dict[str, int] = {}

    def examine(self, step: int, values: Mapping[str, float], rank: int | None) -> list[Alarm]:
        """Alarms that have held for three lines in a row by now, and have not been raised before."""
        if step < self.first_step:
            return []
        alarms = {alarm.name: alarm for alarm in diagnose(values, self.prototypes, rank)}
        self.seen = {name: self.seen.get(name, 0) + 1 for name in alarms}
        raised = [alarm for name, alarm in alarms.items() if self.seen[name] == PATIENCE]
        for alarm in raised:
            append_line(self.path, {"step": step, **asdict(alarm)})
            logger.warning("alarm at step %d: %s", step, alarm)
        return raised


class NonFiniteError(UserError):
    """A loss or a part of it is infinite or not a number."""


def require_finite(values: dict[str, float], step: int, report: Path, checkpoint: Path | None) -> None:
    """Stop a run with non-finite losses or metrics, with a report.

    Args:
        values: averages of the steps up to `step`.
        report: JSON file to write them to.
        checkpoint: the newest one, named in the message.
    Raises:
        NonFiniteError: if any of the values is infinite or not a number.
    """
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        write_below(report.parent, report.name, json.dumps({"step": step, "not_finite": bad, "values": values}, indent=1))
        raise NonFiniteError(f"not finite in the steps up to {step}: {', '.join(bad)} (see {report}).\n{advice(checkpoint)}")


def advice(checkpoint: Path | None) -> str:
    """Advice for non-finite metrics or gradients."""
    return (
        f"The newest good checkpoint is {checkpoint}. Lower optim.base_learning_rate, lengthen optim.warmup_epochs or "
        "tighten optim.max_grad_norm."
    )
