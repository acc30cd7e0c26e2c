"""Before a launch: will the recipe fit into memory, and how long will it take?

Sizes of weights come from the model on the meta device, the memory of a step from two small steps that are run and profiled
here; it grows linearly with the images. What the engines add and shard is counted (`ENGINES`).
"""

import json
import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from timeit import repeat

import psutil
import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from hssl_hf.config.recipe import Recipe
from hssl_hf.data.files import write_below
from hssl_hf.data.loader import epoch_length
from hssl_hf.data.views import Views, collate
from hssl_hf.engine.memory import GIB, peak_allocation, process_peaks, total
from hssl_hf.errors import writing
from hssl_hf.models.modeling_student_teacher import StudentTeacherPreTrainedModel
from hssl_hf.pretraining.setup import build_augmentation, build_model, forward_on_cpu, with_supported_precision
from hssl_hf.pretraining.training_schedule import TrainingSchedule
from hssl_hf.runs.manifest import ESTIMATE

CONTEXT = 0.75 * GIB  # of CUDA and its libraries; ours: what an idle process with PyTorch takes
PHOTOGRAPH = (375, 500)
LIBRARIES = ("datasets", "evaluate", "matplotlib.figure", "transformers")  # which a run has loaded
MIN_IMAGES = 2  # images of a step; in-batch objectives compare them
OPERATIONS = 2e11  # of a step that is measured: a second or two on a few cores
ENGINES = {  # what is divided among the processes; `exchange`: gradients are held twice, `master`: weights too
    "single": (),
    "ddp": ("exchange",),
    "fsdp2": ("weights", "gradients", "optimizer"),
    "zero1": ("optimizer", "exchange", "master"),
    "zero2": ("gradients", "optimizer", "exchange", "master"),
}


@dataclass(frozen=True)
class StepCost:
    """What was measured of steps on this machine.

    Args:
        fixed, per_image: bytes that a step holds beside weights and optimizer = fixed + images * per_image.
        logits_per_image: bytes of them in outputs of the prototypes.
        flops_per_image: floating point operations, forward and backward.
        seconds_per_image: with all cores.
    """

    fixed: float
    per_image: float
    logits_per_image: float
    flops_per_image: float
    seconds_per_image: float


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
        remedies = "optim.gradient_accumulation_steps, run.activation_checkpointing=true, more processes, or fsdp2 / zero2"
        lines += [f"  try {remedies}"] if self.needed > self.available else []
        lines += ["", f"{self.steps:,} steps, {self.images_per_second:,.1f} images per second, {self.hours:,.1f} hours"]
        lines += ["at the speed of this machine; --device-tflops sets that of another"] if self.measured_here else []
        return "\n".join(lines)


def estimate(
    recipe: Recipe, engine: str = "single", processes: int = 1, memory: float | None = None, tflops: float | None = None
) -> Estimate:
    """
    Args:
        recipe: to be launched.
        engine: one of `ENGINES`.
        processes: how many devices.
        memory: of a device in GiB; None for this machine's, divided among its processes.
        tflops: speed of a device in training, in 10^12 operations per second; None for the speed of this machine.
    Raises:
        RecipeError: if the recipe cannot be launched like that, or the batch does not divide.
    """
    recipe = with_supported_precision(recipe) if memory is None else recipe
    images = recipe.images_per_process(processes)
    with torch.device("meta"):
        model = build_model(recipe)
    for library in LIBRARIES:
        import_module(library)
    runtime = CONTEXT if memory else psutil.Process().memory_info().rss
    step = measure_step(recipe, images, device_like=memory is not None)
    memory_items = _memory_items(model, step, images, engine, processes) | {"runtime": runtime}
    available = memory * GIB if memory else total(torch.device("cpu")) / processes
    images_per_epoch = recipe.data.images_per_epoch  # where it is set, the data need not be here
    length = round(images_per_epoch * recipe.data.fraction) if images_per_epoch else epoch_length(recipe.data)
    schedule = TrainingSchedule(recipe, length)
    speed = processes * tflops * 1e12 / step.flops_per_image if tflops else 1 / step.seconds_per_image
    hours = schedule.steps * recipe.optim.batch_size / speed / 3600
    modules = {name: getattr(model.student, name, None) for name in ("base", "auxiliary", "heads")}
    modules["all that is trained"] = model.student
    counts = {name: count for name, module in modules.items() if module is not None and (count := _count_trained(module))}
    return Estimate(engine, processes, images, memory_items, available, counts, schedule.steps, speed, hours, tflops is None)


def measure_step(recipe: Recipe, images: int, device_like: bool = False) -> StepCost:
    """Run and profile steps with few images on the processor.

    Args:
        images: of a step of the run; the measured steps have fewer, so that they take a second or two.
        device_like: as on an accelerator: memory of the tensors, with the attention that keeps no table of weights, even where
            it is slow here; otherwise memory of the process, with what its allocator and libraries keep for themselves.
    """
    fused = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(device_like or recipe.optim.mixed_precision != "bf16")
    try:
        model = build_model(recipe).train()
        operations, logits = _count_operations(model, recipe)
        large = max(2 * MIN_IMAGES, min(images, int(OPERATIONS / operations)))
        steps = [partial(_step, model, recipe, _samples(recipe, model, count)) for count in (large // 2, large)]
        half, full = [peak_allocation(step) for step in steps] if device_like else process_peaks(steps)
        seconds = min(repeat(steps[1], number=1, repeat=2)) / large  # the first call also allocates what libraries keep
    finally:
        timm.layers.set_fused_attn(fused)
    slope = (full - half) / (large - large // 2)
    return StepCost(full - large * slope, slope, logits, operations, seconds)


def _count_operations(model: StudentTeacherPreTrainedModel, recipe: Recipe) -> tuple[float, float]:
    """Floating point operations of an image, and bytes of its logits, without computing anything; no branch is dropped."""
    views = collate(_samples(recipe, model, MIN_IMAGES)).augment_and_normalize(recipe.views)
    logits = LogitBytes(getattr(model.config, "num_prototypes", None))
    corrected = {torch.ops.aten.convolution_backward: _convolution_backward}
    with (
        FlopCounterMode(display=False, custom_mapping=corrected) as counter,
        FakeTensorMode(allow_non_fake_inputs=True) as fake,
    ):
        views = replace(views, **{name: fake.from_tensor(value) for name, value in views.tensors().items()})
        with logits:
            loss = _loss(model.eval(), recipe, views)
        loss.backward()
    model.zero_grad(set_to_none=True)
    model.train()
    return counter.get_total_flops() / MIN_IMAGES, logits.bytes / MIN_IMAGES


def _convolution_backward(out, _, weight, *args, **kwargs) -> int:
    """Operations for the gradients of a convolution; PyTorch's own count takes grouped ones for dense.

    Args:
        out, weight: shapes (B, C', H, W) of the output and (C', C / groups, h, w) of the weights.
        args: the last one states which gradients are needed: of the input, of the weights, of the bias.
    """
    return 2 * math.prod(out) * math.prod(weight[1:]) * sum(args[-1][:2])


class LogitBytes(TorchDispatchMode):
    """Adds up the outputs of matrix products that have one column per prototype."""

    def __init__(self, prototypes: int | None):
        super().__init__()
        self.prototypes, self.bytes = prototypes, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        product = function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm)
        if product and isinstance(output, Tensor) and output.shape[-1] == self.prototypes:
            self.bytes += output.nbytes
        return output


def write_estimate(folder: Path, estimate: Estimate) -> None:
    """Write the estimate to the folder of the planned run, whose manifest shows it beside the measurements."""
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    record = {"needed_gib": round(estimate.needed / GIB, 3), **asdict(estimate)}
    write_below(folder, ESTIMATE, json.dumps(record, indent=1) + "\n")


def _samples(recipe: Recipe, model: StudentTeacherPreTrainedModel, count: int) -> list[dict]:
    """The samples of a loader for random photographs."""
    augmentation = build_augmentation(recipe, model)
    generator = torch.Generator().manual_seed(0)
    size = (model.config.num_channels, *PHOTOGRAPH)
    images = [torch.randint(0, 256, size, dtype=torch.uint8, generator=generator) for _ in range(count)]
    return [{**augmentation(image, 0, number), "corrupt": []} for number, image in enumerate(images)]


def _step(model: StudentTeacherPreTrainedModel, recipe: Recipe, samples: list[dict]) -> None:
    """Views, forward and backward as in training; gradients are then freed, as after an optimizer step."""
    views = collate(samples).augment_and_normalize(recipe.views)  # kept to the end, as by the training loop
    _loss(model, recipe, views).backward()
    model.zero_grad(set_to_none=True)


def _loss(model: StudentTeacherPreTrainedModel, recipe: Recipe, views: Views) -> Tensor:
    return forward_on_cpu(model, recipe, views, recipe.optim.teacher_temperature[-1]).loss


def _memory_items(model, step: StepCost, images: int, engine: str, processes: int) -> dict[str, float]:
    """Bytes by kind for one process; weights, moments and gradients are of 4 bytes each."""
    sharding = ENGINES[engine]
    shards = {name: processes if name in sharding else 1 for name in ("weights", "gradients", "optimizer")}
    trained = 4 * _count_trained(model.student)
    saved = trained - trained / shards["gradients"]  # gradients are a part of what a step holds
    return {
        "student": sum(p.nbytes for p in model.student.parameters()) / shards["weights"],
        "teacher": sum(p.nbytes for p in model.teacher.parameters()) / shards["weights"] if model.teacher is not None else 0.0,
        "optimizer": (3 if "master" in sharding else 2) * trained / shards["optimizer"],
        "exchange of gradients": float(trained) if "exchange" in sharding and processes > 1 else 0.0,
        "step": max(0.0, step.fixed + images * step.per_image - saved),
        "logits": images * step.logits_per_image,
    }


def _count_trained(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
