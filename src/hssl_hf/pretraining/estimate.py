"""Before a launch: will the recipe fit into memory, and how long will it take?

The memory of a step is that of its tensors, followed without computing them (`step_memory.py`); what the engines add and shard
is counted. What the processes that read and decode images take of the machine's memory is shown beside it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import psutil
import torch
from torch import nn

from hssl_hf.config.recipe import Recipe
from hssl_hf.data.files import write_below
from hssl_hf.data.loader import epoch_length
from hssl_hf.engine.memory import GIB, total
from hssl_hf.errors import writing
from hssl_hf.fields import FieldError, Range, check
from hssl_hf.models.modeling_student_teacher import StudentTeacherPreTrainedModel
from hssl_hf.pretraining.setup import build_model, with_supported_precision
from hssl_hf.pretraining.step_cost import count_operations, seconds_per_image
from hssl_hf.pretraining.step_memory import Moment, attention_as_in_training, follow_step
from hssl_hf.pretraining.training_schedule import TrainingSchedule
from hssl_hf.pretraining.worker_memory import worker_memory
from hssl_hf.runs.manifest import ESTIMATE

CONTEXT = 0.75 * GIB  # of CUDA and its libraries; ours: what an idle process with PyTorch takes
LIBRARIES = ("datasets", "evaluate", "matplotlib.figure", "transformers")  # which a run has loaded
ENGINES = ("single", "ddp", "fsdp2", "zero1", "zero2")
ZERO_BUCKET = 4 * 5 * 10**8  # bytes of the buffer through which DeepSpeed reduces gradients, its default
RANGES = {
    "engine": Literal[ENGINES],
    "processes": Annotated[int, Range(1, 2**20)],
    "device_memory": Annotated[float, Range(above=0)] | None,
    "device_tflops": Annotated[float, Range(above=0)] | None,
}


@dataclass(frozen=True)
class Estimate:
    """The memory of a process and the speed of the run.

    Args:
        engine, processes, images: engine, number of processes, and images of one process at once.
        memory_items: bytes of one process by kind; `logits` are a part of `step`.
        available: bytes of a device.
        parameters: trained ones, by part of the model.
        steps, images_per_second, hours: of the full run.
        measured_here: the speed is that of this machine, not of a device that was named.
        workers, worker_bytes: processes that read and decode for one process, and the most that they take of the machine's
            memory together; on processors this is one of `memory_items`.
    """

    engine: str
    processes: int
    images: int
    memory_items: dict[str, float]
    available: float
    parameters: dict[str, int]
    steps: int
    images_per_second: float
    hours: float
    measured_here: bool
    workers: int
    worker_bytes: float

    @property
    def needed(self) -> float:
        return sum(value for name, value in self.memory_items.items() if name != "logits")

    def table(self) -> str:
        """For the screen."""
        lines = [f"{name:34s}{count / 1e6:10.1f} million parameters" for name, count in self.parameters.items()]
        lines += ["", f"one of {self.processes} processes, engine {self.engine}, {self.images} images at once:"]
        names = {"logits": "  of it logits", "step": "step: activations, gradients", "runtime": "libraries"}
        lines += [f"  {names.get(name, name):32s}{value / GIB:10.2f} GiB" for name, value in self.memory_items.items()]
        verdict = "fits" if self.needed <= self.available else "DOES NOT FIT"
        lines += [f"  {'together':32s}{self.needed / GIB:10.2f} GiB of {self.available / GIB:.1f}: {verdict}"]
        remedies = "optim.gradient_accumulation_steps, run.activation_checkpointing=true, more processes, or fsdp2 / zero2"
        lines += [f"  try {remedies}"] if self.needed > self.available else []
        if "data workers" not in self.memory_items:
            of_machine = self.processes * self.worker_bytes / GIB
            workers = f"{self.processes} x {self.workers} data workers"
            lines += ["", f"beside the devices, {workers} take up to {of_machine:.2f} GiB of the machines' memory"]
        lines += ["", f"{self.steps:,} steps, {self.images_per_second:,.1f} images per second, {self.hours:,.1f} hours"]
        lines += ["at the speed of this machine; --device-tflops sets that of another"] if self.measured_here else []
        return "\n".join(lines)


def estimate(
    recipe: Recipe,
    engine: str = "single",
    processes: int = 1,
    device_memory: float | None = None,
    device_tflops: float | None = None,
) -> Estimate:
    """
    Args:
        recipe: to be launched.
        engine: one of `ENGINES`.
        processes: how many devices, at least 1.
        device_memory: of a device in GiB, above 0; None for this machine's, divided among its processes.
        device_tflops: speed of a device in training, in 10^12 operations per second, above 0; None for this machine's.
    Raises:
        FieldError: for values out of these ranges.
        RecipeError: if the recipe cannot be launched like that, or the batch does not divide.
    """
    values = {"engine": engine, "processes": processes, "device_memory": device_memory, "device_tflops": device_tflops}
    for name, value in values.items():
        check(RANGES[name], value, name)
    if engine == "single" and processes > 1:
        raise FieldError(
            f"processes: expected 1 with the engine 'single', got {processes}; or choose ddp, fsdp2, zero1 or zero2"
        )
    on_device = device_memory is not None
    recipe = recipe if on_device else with_supported_precision(recipe)
    images = recipe.images_per_process(processes)
    with torch.device("meta"):
        model = build_model(recipe)
    with attention_as_in_training(recipe, on_device):
        moments = follow_step(recipe, images, processes)
        operations, logits = count_operations(recipe)
        seconds = None if device_tflops else seconds_per_image(recipe, operations, images)
    for library in LIBRARIES:
        import_module(library)
    runtime = CONTEXT if on_device else psutil.Process().memory_info().rss  # with what the timed steps have left behind
    memory_items = _memory_items(model, moments, images * logits, engine, processes) | {"runtime": runtime}
    workers, worker_bytes = worker_memory(recipe, model, images)
    memory_items |= {} if on_device else {"data workers": worker_bytes}
    available = device_memory * GIB if on_device else total(torch.device("cpu")) / processes
    images_per_epoch = recipe.data.images_per_epoch  # where it is set, the data need not be here
    length = round(images_per_epoch * recipe.data.fraction) if images_per_epoch else epoch_length(recipe.data)
    schedule = TrainingSchedule(recipe, length)
    speed = processes * device_tflops * 1e12 / operations if device_tflops else 1 / seconds
    hours = schedule.steps * recipe.optim.batch_size / speed / 3600
    return Estimate(
        engine, processes, images, memory_items, available, _parameters(model), schedule.steps, speed, hours,
        device_tflops is None, workers, worker_bytes,
    )  # fmt: skip


def write_estimate(folder: Path, estimate: Estimate) -> None:
    """Write the estimate to the folder of the planned run, whose manifest shows it beside the measurements."""
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    record = {"needed_gib": round(estimate.needed / GIB, 3), **asdict(estimate)}
    write_below(folder, ESTIMATE, json.dumps(record, indent=1) + "\n")


def _memory_items(
    model: StudentTeacherPreTrainedModel, moments: Sequence[Moment], logits: float, engine: str, processes: int
) -> dict[str, float]:
    """Bytes by kind for one process; weights, moments and gradients are of 4 bytes each."""
    count = processes if engine not in ("single", "ddp") else 1  # of shards
    shards = count if engine == "fsdp2" else 1
    trained = 4 * _count_trained(model.student)
    everything = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    student = sum(p.nbytes for p in model.student.parameters())
    teacher = sum(p.nbytes for p in model.teacher.parameters()) if model.teacher is not None else 0
    items = {"student": student / shards, "teacher": teacher / shards, "buffers": float(everything - student - teacher)}
    items["optimizer"] = (3 if engine.startswith("zero") else 2) * trained / count
    step = _step_items(model, moments, engine, processes)
    return items | {"step": step.pop("step"), "logits": logits} | step


def _step_items(
    model: StudentTeacherPreTrainedModel, moments: Sequence[Moment], engine: str, processes: int
) -> dict[str, float]:
    """What a step holds beside weights and optimizer: the largest sum at one time, and buffers for what is exchanged.

    DDP copies gradients to buckets. FSDP2 gathers the weights of the block that is computed and of the next one, and of all
    that is in no block for the full step; gradients are divided once a block, or the rest, is through. ZeRO-1 divides gradients
    at the end, ZeRO-2 moves them to its buffer at once; both copy all of them to be clipped.
    """
    trained = 4 * _count_trained(model.student)
    full = float(max(moment.other + moment.blocks + moment.rest for moment in moments))
    if engine in ("single", "ddp"):
        return {"step": full} | ({"exchange of gradients": float(trained)} if processes > 1 else {})
    if engine == "fsdp2":
        block, rest = _sharded_units(model)
        divided = max(moment.other + moment.blocks / processes + moment.rest for moment in moments)
        return {"step": float(divided), "gathered weights": float(rest + 2 * block), "exchange of gradients": 2.0 * block}
    divided = full if engine == "zero1" else float(max(moment.other for moment in moments))
    return {"step": max(divided, trained), "exchange of gradients": ZERO_BUCKET + trained / processes}


def _sharded_units(model: StudentTeacherPreTrainedModel) -> tuple[int, int]:
    """Bytes of the weights of the largest block that FSDP2 gathers by itself, and of all weights that are in no block."""
    names = set(model._no_split_modules)
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    inside = {p for block in blocks for p in block.parameters()}
    largest = max((sum(p.nbytes for p in block.parameters()) for block in blocks), default=0)
    return largest, sum(p.nbytes for p in model.parameters() if p not in inside)


def _parameters(model: StudentTeacherPreTrainedModel) -> dict[str, int]:
    """Numbers of trained parameters by part of the model."""
    modules = {name: getattr(model.student, name, None) for name in ("base", "auxiliary", "heads")}
    modules["all that is trained"] = model.student
    return {name: count for name, module in modules.items() if module is not None and (count := _count_trained(module))}


def _count_trained(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
