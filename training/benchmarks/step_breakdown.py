"""Where the time of a training step goes, for any recipe.

    python -m training.benchmarks.step_breakdown [recipe.yaml] [a.b=c ...] [--steps 20]

The steps are those of training/pretrain.py. Measured are the wait for data, color operations, forward passes, heads
(projections, decoder, loss), backward pass, clipping, optimizer and the teacher's update.
"""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch

from hssl_hf.cli.programs import read_recipe
from hssl_hf.data.views import Views
from hssl_hf.engine.optim import CLIPS
from hssl_hf.pretraining.trainer import PreTrainer
from hssl_hf.runs.metric_logger import MetricAccumulator

HEADS = ("objective", "student.projector", "student.decoder", "teacher.projector")


class Stopwatch:
    """Seconds per stage, of functions that are replaced by timed ones."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)

    def wrap(self, owner: object, name: str, stage: str) -> None:
        """Time every call of a method."""
        setattr(owner, name, self.timed(getattr(owner, name), stage))

    def timed(self, function: Callable, stage: str) -> Callable:
        def timed(*args, **kwargs):
            _wait()
            started = perf_counter()
            result = function(*args, **kwargs)
            _wait()
            self.seconds[stage] += perf_counter() - started
            return result

        return timed


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Measurement:
    """A run whose training steps are timed by stage, after some to warm up."""

    def __init__(self, trainer: PreTrainer, warm_up: int):
        self.trainer, self.warm_up, self.finished, self.started = trainer, warm_up, 0, perf_counter()
        self.stopwatch, method = Stopwatch(), trainer.method
        for name, module in method.named_modules():
            if name in HEADS:
                self.stopwatch.wrap(module, "forward", "heads")
        self.stopwatch.wrap(method, "forward", "forward")
        self.stopwatch.wrap(method, "update_teacher", "teacher")
        self.stopwatch.wrap(trainer.engine, "backward", "backward")
        self.stopwatch.wrap(trainer.engine.optimizer, "step", "optimizer")
        for rule, function in CLIPS.items():
            CLIPS[rule] = self.stopwatch.timed(function, "clip")
        self.stopwatch.wrap(Views, "augment_and_normalize", "color")
        update = method.update_teacher
        method.update_teacher = lambda momentum: self._end_of_step(update(momentum))

    def _end_of_step(self, _) -> None:
        self.finished += 1
        if self.finished == self.warm_up:
            self.stopwatch.seconds.clear()
            self.trainer.metrics, self.started = MetricAccumulator(), perf_counter()
        if self.finished == self.trainer.schedule.steps:
            self.total, self.waited = perf_counter() - self.started, self.trainer.metrics.waited


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="*", metavar="recipe.yaml | a.b=c")
    parser.add_argument("--steps", type=int, default=20, help="measured, after a quarter as many to warm up")
    options = parser.parse_intermixed_args()
    warm_up = max(1, options.steps // 4)
    fixed = ["probe.path=null", "run.export=false", f"run.logging_steps={10 * options.steps}"]
    recipe, _ = read_recipe([*options.arguments, *fixed])
    with tempfile.TemporaryDirectory() as folder:
        trainer = PreTrainer(recipe, Path(folder))
        trainer.schedule.steps = warm_up + options.steps
        measurement = Measurement(trainer, warm_up)
        trainer.train()
    report(measurement.stopwatch.seconds, measurement.waited, measurement.total, options.steps, recipe.optim.batch_size)


def report(seconds: dict[str, float], waited: float, total: float, steps: int, batch: int) -> None:
    """Print one line per stage; heads are part of the forward pass, and shown apart from the rest of it."""
    stages = {"data wait": waited, **seconds, "forward": seconds["forward"] - seconds["heads"]}
    stages["rest"] = total - sum(stages.values())
    order = ("data wait", "color", "forward", "heads", "backward", "clip", "optimizer", "teacher", "rest")
    print(f"{steps} steps of {batch} images, {steps * batch / total:.1f} images per second")
    for stage in order:
        print(f"{stage:12}{1000 * stages.get(stage, 0.0) / steps:10.1f} ms{100 * stages.get(stage, 0.0) / total:7.1f} %")


if __name__ == "__main__":
    main()
