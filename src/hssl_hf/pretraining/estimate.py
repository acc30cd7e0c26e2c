"""Before a launch: will the recipe fit into memory, and how long will it take?

Sizes of weights come from the model on the meta device, what a step holds from two small steps that are really run and profiled
here; it grows linearly with the images. What the engines add and share is counted (`ENGINES`).
"""

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from time import perf_counter

import psutil
import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForPreTraining

import hssl_hf
from hssl_hf.config.recipe import Recipe, RecipeError
from hssl_hf.data.augmentation import Augmentation
from hssl_hf.data.loader import epoch_length
from hssl_hf.data.views import collate
from hssl_hf.engine.memory import GIB, held_in_turn, process_held_in_turn, total
from hssl_hf.models.modeling_student_teacher import StudentTeacherPreTrainedModel
from hssl_hf.pretraining.training_schedule import TrainingSchedule
from hssl_hf.runs.manifest import ESTIMATE

CONTEXT = 0.75 * GIB  # of CUDA and its libraries; ours: what an idle process with PyTorch takes
PHOTOGRAPH = (375, 500)
LIBRARIES = ("datasets", "evaluate", "matplotlib.figure", "transformers")  # which a run has loaded
MIN_IMAGES = 2  # images of a step; in-batch objectives compare them
OPERATIONS = 2e11  # of a step that is measured: a second or two on a few cores


@dataclass(frozen=True)
class EngineSharding:
    """What one of N processes holds of weights, gradients and optimizer, and of gradients again for their exchange."""

    weights: bool = False
    gradients: bool = False
    optimizer: bool = False
    exchange: bool = True
    master: bool = False


ENGINES = {
    "single": EngineSharding(exchange=False),
    "ddp": EngineSharding(),
    "fsdp2": EngineSharding(weights=True, gradients=True, optimizer=True, exchange=False),
    "zero1": EngineSharding(optimizer=True, master=True),
    "zero2": EngineSharding(gradients=True, optimizer=True, master=True),
}


@dataclass(frozen=True)
class StepCost:
    """What was measured of steps here.

    Args:
        fixed, per_image: bytes that a step holds beside weights and optimizer = fixed + images * per_image.
        logits_per_image: bytes of them in outputs of the prototypes.
        flops_per_image: floating point operations, forward and backward.
        seconds_per_image: on this machine, all its cores.
    """

    fixed: float
    per_image: float
    logits_per_image: float
    flops_per_image: float
    seconds_per_image: float


@dataclass(frozen=True)
class Estimate:
    """What a process will hold, in bytes by kind, and how fast the run will be.

    Args:
        engine, processes, images: under which engine, and the images of one process at once.
        memory_items: bytes of one process; `logits` are a part of `step`.
        available: bytes of a device.
        parameters: trained ones, by part of the model.
        steps, images_per_second, hours: of the full run.
        measured_here: the speed is that of this machine, not of a device that was named.
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
        if self.needed > self.available:
            lines.append(
                "  try optim.gradient_accumulation_steps, run.activation_checkpointing=true, more processes, or fsdp2 / zero2"
            )
        lines += ["", f"{self.steps:,} steps, {self.images_per_second:,.1f} images per second, {self.hours:,.1f} hours"]
        lines += ["at the speed of this machine; --tflops sets that of another"] if self.measured_here else []
        return "\n".join(lines)


def estimate(
    recipe: Recipe, engine: str = "single", processes: int = 1, memory: float | None = None, tflops: float | None = None
) -> Estimate:
    """
    Args:
        recipe: to be launched.
        engine: one of `ENGINES`.
        processes: how many devices.
        memory: of a device in GiB; None for this machine's, where its processes share it.
        tflops: what a device reaches in training, in 10^12 operations per second; None for the speed of this machine.
    Raises:
        RecipeError: if the recipe cannot be launched like that, or the batch does not divide.
    """
    images = recipe.images_per_process(processes)
    with torch.device("meta"):
        model = _build(recipe)
    for library in LIBRARIES:
        import_module(library)
    runtime = CONTEXT if memory else psutil.Process().memory_info().rss
    step = measure_step(recipe, images, device_like=memory is not None)
    memory_items = _memory_items(model, step, images, engine, processes) | {"runtime": runtime}
    available = memory * GIB if memory else total(torch.device("cpu")) / processes
    known = recipe.data.images_per_epoch  # so that the data need not be here
    schedule = TrainingSchedule(recipe, round(known * recipe.data.fraction) if known else epoch_length(recipe.data))
    speed = processes * tflops * 1e12 / step.flops_per_image if tflops else 1 / step.seconds_per_image
    hours = schedule.steps * recipe.optim.batch_size / speed / 3600
    counts = {name: _count_trained(getattr(model.student, name, None)) for name in ("base", "auxiliary", "heads")}
    counts["all that is trained"] = _count_trained(model.student)
    counts = {name: count for name, count in counts.items() if count}
    return Estimate(engine, processes, images, memory_items, available, counts, schedule.steps, speed, hours, tflops is None)


def measure_step(recipe: Recipe, images: int, device_like: bool = False) -> StepCost:
    """Run and profile steps with few images on the processor.

    Args:
        images: of a step of the run; steps here have fewer, as many as a moment's work allows.
        device_like: as on an accelerator: what tensors hold, with the attention that keeps no table of weights, even where it
            is slow here; otherwise what the process holds, with what its allocator and libraries keep for themselves.
    """
    bf16 = recipe.optim.mixed_precision == "bf16"
    fused = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(device_like or not bf16)
    try:
        model = _build(recipe).train()
        operations, logits = _count_operations(model, recipe)
        large = max(2 * MIN_IMAGES, min(images, int(OPERATIONS / operations)))
        run = {count: partial(_step, model, recipe, _samples(recipe, model, count)) for count in (large // 2, large)}
        small, most = held_in_turn(list(run.values())) if device_like else process_held_in_turn(list(run.values()))
        seconds = _seconds(run[large]) / large
    finally:
        timm.layers.set_fused_attn(fused)
    slope = (most - small) / (large - large // 2)
    return StepCost(most - large * slope, slope, logits, operations, seconds)


def _count_operations(model: StudentTeacherPreTrainedModel, recipe: Recipe) -> tuple[float, float]:
    """Floating point operations of an image, and bytes of its logits, without computing anything; no branch is dropped."""
    samples, logits = _samples(recipe, model, MIN_IMAGES), LogitBytes(getattr(model.config, "num_prototypes", None))
    right = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=right) as counter, FakeTensorMode(allow_non_fake_inputs=True) as mode:
        _step(model.eval(), recipe, samples, fake=mode, watching=logits)
    model.train()
    return counter.get_total_flops() / MIN_IMAGES, logits.bytes / MIN_IMAGES


def _convolution_backward(out, _, weight, *arguments, **named) -> int:
    """Operations for the gradients of a convolution; PyTorch's own count takes grouped ones for dense.

    Args:
        out, weight: shapes (B, C', H, W) of the output and (C', C / groups, h, w) of the weights; of the other arguments the
            last is for which gradients are needed.
    """
    wanted = arguments[-1]
    return 2 * math.prod(out) * math.prod(weight[1:]) * (wanted[0] + wanted[1])


class LogitBytes(TorchDispatchMode):
    """Adds up the outputs of matrix products that have one column per prototype."""

    def __init__(self, prototypes: int | None):
        super().__init__()
        self.prototypes, self.bytes = prototypes, 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        output = function(*arguments, **(named or {}))
        product = function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm)
        if product and isinstance(output, Tensor) and output.shape[-1] == self.prototypes:
            self.bytes += output.nbytes
        return output


def _seconds(call: Callable[[], None]) -> float:
    """Of the quicker of two calls, of which the first takes what libraries need once."""
    found = []
    for _ in range(2):
        started = perf_counter()
        call()
        found.append(perf_counter() - started)
    return min(found)


def write_estimate(folder: Path, estimate: Estimate) -> None:
    """Write it to the folder of the planned run, whose manifest shows it beside the measurements."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"needed_gib": round(estimate.needed / GIB, 3), **asdict(estimate)}
    (folder / ESTIMATE).write_text(json.dumps(record, indent=1) + "\n")


def _build(recipe: Recipe) -> StudentTeacherPreTrainedModel:
    try:
        hssl_hf.register()
        config = recipe.model_config()
        model = AutoModelForPreTraining.from_config(config)
    except ValueError as error:
        raise RecipeError(f"model: {error}") from error
    if recipe.run.activation_checkpointing:
        model.activation_checkpointing_enable()
    return model


def _samples(recipe: Recipe, model, count: int) -> list[dict]:
    """The samples of a loader for random photographs."""
    augmentation = Augmentation(recipe.views, recipe.masks, model.student.base.grid, recipe.seed, model.masked_views)
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *PHOTOGRAPH), dtype=torch.uint8, generator=generator) for _ in range(count)]
    return [{**augmentation(image, 0, number), "corrupt": []} for number, image in enumerate(images)]


def _step(
    model, recipe: Recipe, samples: list[dict], fake: FakeTensorMode | None = None, watching: LogitBytes | None = None
) -> None:
    """Views, forward and backward as in training; gradients are then freed, as after an optimizer step."""
    with unset_fake_temporarily():
        tensors = collate(samples).augment_and_normalize(recipe.views).tensors()
    if fake is not None:
        tensors = {name: fake.from_tensor(value) for name, value in tensors.items()}
    arguments = {**tensors, "teacher_temperature": recipe.optim.teacher_temperature[-1]}
    known = signature(model.forward).parameters
    given = {name: value for name, value in arguments.items() if name in known}
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.optim.mixed_precision == "bf16"), watching or nullcontext():
        loss = model(**given).loss
    loss.backward()
    model.zero_grad(set_to_none=True)


def _memory_items(model, step: StepCost, images: int, engine: str, processes: int) -> dict[str, float]:
    """Bytes by kind for one process; weights, moments and gradients are of 4 bytes each."""
    sharding = ENGINES[engine]
    pieces = {name: processes if getattr(sharding, name) else 1 for name in ("weights", "gradients", "optimizer")}
    trained = 4 * _count_trained(model.student)
    saved = trained - trained / pieces["gradients"]  # gradients are a part of what a step holds
    return {
        "student": sum(p.nbytes for p in model.student.parameters()) / pieces["weights"],
        "teacher": sum(p.nbytes for p in model.teacher.parameters()) / pieces["weights"] if model.teacher is not None else 0.0,
        "optimizer": (3 if sharding.master else 2) * trained / pieces["optimizer"],
        "exchange of gradients": float(trained) if sharding.exchange and processes > 1 else 0.0,
        "step": max(0.0, step.fixed + images * step.per_image - saved),
        "logits": images * step.logits_per_image,
    }


def _count_trained(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters() if p.requires_grad)
