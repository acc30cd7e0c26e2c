"""The log of a run: JSON lines always, a plot of its curves, trackers on request."""

import json
from collections.abc import Sequence
from math import inf
from numbers import Real
from pathlib import Path
from time import perf_counter

import torch
from accelerate import Accelerator
from torch import Tensor

from hssl_hf.data.files import append_line, read_lines, write_below
from hssl_hf.visualization.curves import draw_curves

LOG, CURVES = "log.jsonl", "curves.png"
LARGEST = 1e30  # number of a log, whose curves are drawn


class MetricLogger:
    """The log of a run; only the main process writes.

    Args:
        folder: folder of the run.
        accelerator: with its trackers already started.
        first_step: lines after this step are dropped, so that a resumed run continues its log without repeating itself; 0
            starts a new log.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, first_step: int = 0):
        self.path, self.curves, self.accelerator = folder / LOG, folder / CURVES, accelerator
        if accelerator.is_main_process:
            kept = [line for line in read_log(self.path) if first_step and line["step"] <= first_step]
            write_below(folder, LOG, "".join(json.dumps(line) + "\n" for line in kept))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write one line; the step counts finished optimizer steps."""
        if not self.accelerator.is_main_process:
            return
        append_line(self.path, {"step": step, **values})
        self.accelerator.log(values, step=step)

    def has(self, step: int, name: str) -> bool:
        """Whether the log has this value at this step."""
        return any(line["step"] == step and name in line for line in read_log(self.path))

    def draw(self) -> None:
        """Draw the curves of the full run into `curves.png`; for the main process."""
        draw_curves(read_log(self.path), self.curves)


class MetricAccumulator:
    """Sums of the metrics of steps, on the device until a line of the log is written."""

    def __init__(self):
        self.sums: dict[str, Tensor] = {}
        self.steps, self.images, self.waited, self.started = 0, 0, 0.0, perf_counter()

    def add(self, values: dict[str, Tensor | None], images: int) -> None:
        """Note one step with its scalars (None entries are left out) and its images over all processes."""
        for name, value in values.items():
            if value is not None:
                value = value.detach().float()
                self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps, self.images = self.steps + 1, self.images + images

    def read(self, accelerator: Accelerator, flags: list[float]) -> tuple[dict[str, float], list[float]]:
        """Averages since the last reading, over all processes, and the mean of flags that the processes must agree on.

        Everything travels in one reduction. A value that was not finite in any step or process stays so in the average.
        """
        sums = [value / self.steps for value in self.sums.values()]
        packed = torch.stack([*sums, *torch.tensor(flags, device=accelerator.device)])
        values = accelerator.reduce(packed, "mean").tolist()
        averages = dict(zip(self.sums, values, strict=False))
        elapsed = max(perf_counter() - self.started, 1e-9)
        averages |= {"images_per_second": self.images / elapsed, "data_wait": self.waited / elapsed}
        self.__init__()
        return averages, values[len(sums) :]


def progress_metrics(values: dict[str, float], terms: Sequence[str]) -> dict[str, str]:
    """What a progress bar shows of a line of the log: loss, its terms, discrepancy, speed, fraction of time without data."""
    shown = {"loss": f"{values['loss']:.3f}"}
    for name in terms if len(terms) > 1 else []:
        shown[name.replace("auxiliary", "aux").replace("_to_", "→").replace("_", " ")] = f"{values[name]:.3f}"
    for name, short in (("discrepancy", "disc"), ("collapse", "collapse")):
        if name in values:
            shown[short] = f"{values[name]:.3f}"
    return shown | {"img/s": f"{values['images_per_second']:.0f}", "wait": f"{100 * values['data_wait']:.0f}%"}


def read_log(path: Path | str) -> list[dict]:
    """Lines of a log; damaged ones, such as a last one cut short by a crash, are skipped with a warning."""
    return read_lines(path, _check_line)


def _check_line(line: dict) -> None:
    """Raise a ValueError for what is no line of a log: a step, and numbers, which may be infinite or NaN but not absurd."""
    if not isinstance(step := line.get("step"), int) or not 0 <= step < LARGEST:
        raise ValueError("without a step")
    numbers = {name: value for name, value in line.items() if value is not None}
    if wrong := [name for name, value in numbers.items() if not isinstance(value, Real) or LARGEST < abs(value) < inf]:
        raise ValueError(f"{', '.join(wrong)[:80]}: expected numbers")
    if not 0 <= line.get("epoch", 0) < LARGEST:
        raise ValueError("epoch: expected a number from 0 on")
