"""Schedules: pure functions from a training step to a value."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up from 0 to `start`, then half a cosine from `start` to `end`.

    The warm-up covers `warmup_steps` steps. It reaches `start` on the last of them (DINO) or on the one after it (MAE); there
    the cosine starts, which stops one step short of `end`.

    Args:
        start: value at the end of the warm-up.
        end: value that the cosine approaches.
        steps: length of the schedule.
        warmup_steps: length of the warm-up, in [0, steps].
        warmup_rule: "dino" or "mae".
    Source: the schedulers of DINO and iBOT code, and of MAE, MoCo v3 and SiameseIM code.
    """

    start: float
    end: float
    steps: int
    warmup_steps: int = 0
    warmup_rule: str = "dino"

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            length = max(1, self.warmup_steps - 1) if self.warmup_rule == "dino" else self.warmup_steps
            return self.start * step / length
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


@dataclass(frozen=True)
class EpochRamp:
    """A value that rises linearly over the first epochs and then stays; constant within an epoch.

    Args:
        start: value in epoch 0.
        end: value reached in epoch `epochs - 1`.
        epochs: length of the ramp; 0 means the value is `end` throughout.
        steps_per_epoch: optimizer steps in an epoch.
    Source: the teacher temperature of DINO and iBOT.
    """

    start: float
    end: float
    epochs: int
    steps_per_epoch: int

    def __call__(self, step: int) -> float:
        epoch = step // self.steps_per_epoch
        if epoch >= self.epochs:
            return self.end
        return self.start + (self.end - self.start) * epoch / max(1, self.epochs - 1)
