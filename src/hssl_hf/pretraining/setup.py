"""The components of a pre-training run: its directory, model, engine and augmentation, checked for consistency."""

import json
import logging
import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from inspect import signature
from pathlib import Path

import numpy as np
import timm
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import parse_flag_from_env, set_seed
from transformers import AutoModelForPreTraining

from hssl_hf.config.recipe import Recipe, RecipeError, load_recipe, recipe_diff
from hssl_hf.data.augmentation import Augmentation
from hssl_hf.data.masking import MASKS
from hssl_hf.data.source import StreamError, dataset_fingerprint
from hssl_hf.data.views import Views
from hssl_hf.engine.checkpoint import STATE, CheckpointManager
from hssl_hf.engine.distributed import Engine
from hssl_hf.engine.launch import available_cores
from hssl_hf.engine.optim import build_optimizer
from hssl_hf.models.modeling_student_teacher import StudentTeacherPreTrainedModel
from hssl_hf.runs.run_directory import RECIPE
from hssl_hf.runs.run_lock import RunLock

logger = logging.getLogger(__name__)


def with_supported_precision(recipe: Recipe) -> Recipe:
    """The recipe; in fp32, with a warning, on processors that emulate bf16, which takes several times as long."""
    on_cpu = not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    if recipe.optim.mixed_precision != "bf16" or not on_cpu or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return recipe
    if os.environ.get("RANK", "0") == "0":
        logger.warning("this processor has no instructions for bf16: training in fp32 (optim.mixed_precision=no)")
    return replace(recipe, optim=replace(recipe.optim, mixed_precision="no"))


def require_trackers(names: tuple[str, ...]) -> None:
    """Raise a RecipeError if a tracker is not installed."""
    known = sorted(LOGGER_TYPE_TO_CLASS)
    missing = sorted(set(names) - {str(tracker) for tracker in get_available_trackers()})
    if unknown := [name for name in missing if name not in known]:
        raise RecipeError(f"run.report_to: expected any of {', '.join(known)}, got {', '.join(unknown)}")
    if missing:
        extra = "'hssl-hf[trackers]'" if set(missing) <= {"tensorboard", "trackio"} else None
        packages = extra or " ".join(name.replace("_", "-") for name in missing)
        raise RecipeError(f"run.report_to: {', '.join(missing)} not installed; pip install {packages}")


def open_run_directory(recipe: Recipe, lock: RunLock, checkpoints: CheckpointManager) -> Path | None:
    """Claim the folder of the run and keep its recipe there; returns the checkpoint to resume from. For the main process.

    Raises:
        RunLockError: if the folder belongs to another process, or to no run.
        CheckpointError: if all of its checkpoints are damaged.
        RecipeError: if it cannot be written, or holds a run that is not to be resumed, or one with another recipe.
    """
    folder, resume = lock.folder, recipe.resume_from_checkpoint == "auto"
    saved = folder / RECIPE
    if not resume and checkpoints.exist():
        raise RecipeError(f"{folder} already holds a run; continue it with resume_from_checkpoint=auto, or set run.output_dir")
    try:
        lock.acquire()
        checkpoint = checkpoints.latest_valid(quarantine=True) if resume else None
        if checkpoint:
            _require_same_recipe(recipe, saved, checkpoint)
        lock.begin()
        recipe.save(saved)
    except OSError as error:
        raise RecipeError(f"cannot write to run.output_dir={folder}: {error}") from error
    return checkpoint


def _changes(before: Recipe, after: Recipe, checkpoint: Path) -> list[str]:
    """What has changed since the run began; its data may have moved."""
    began, now = json.loads((checkpoint / STATE).read_text()).get("data_fingerprint"), None
    with suppress(StreamError):
        now = dataset_fingerprint(after.data)["fingerprint"]
    if before.data.path == after.data.path and now and began and now != began:
        logger.warning(
            "the images of data.path have changed since the run began: in this epoch some can come twice or not at all"
        )
    if now and now == began:
        before = replace(before, data=replace(before.data, path=after.data.path))
    return recipe_diff(before.to_dict(), after.to_dict())


def _require_same_recipe(recipe: Recipe, saved: Path, checkpoint: Path) -> None:
    if changed := _changes(load_recipe(saved), recipe, checkpoint):
        raise RecipeError(
            f"the run in {saved.parent} was started with another recipe:\n  " + "\n  ".join(changed)
            + "\nResume with the old values, or start a new run with run.output_dir=..."
        )  # fmt: skip


def use_all_cores(accelerator: Accelerator, bf16: bool) -> None:
    """Divide the cores among the processes of a CPU run; `accelerate launch` leaves each of them one thread."""
    if accelerator.device.type == "cpu":
        timm.layers.set_fused_attn(not bf16)  # in bf16 its backward pass takes many times as long
        torch.set_num_threads(max(1, available_cores() // accelerator.num_processes))


def build_model(recipe: Recipe) -> StudentTeacherPreTrainedModel:
    """The model of a recipe, not yet seeded or checked against the rest of the recipe."""
    model = as_recipe_error(lambda: AutoModelForPreTraining.from_config(recipe.model_config()))
    if recipe.run.activation_checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None)  # "gradient_" before transformers 5.22
        (enable or model.gradient_checkpointing_enable)()
    return model


def build_method(recipe: Recipe) -> StudentTeacherPreTrainedModel:
    """The model of a recipe, initialized from its seed.

    Raises:
        RecipeError: if views, masks or accumulation do not suit it.
    """
    set_seed(recipe.seed)
    method = build_model(recipe)
    as_recipe_error(lambda: method.check_views(len(recipe.views.global_crop_blur), recipe.views.num_local_crops), "views")
    as_recipe_error(lambda: method.get_network(recipe.run.export_network), "run.export_network")
    if recipe.views.num_local_crops:
        as_recipe_error(lambda: method.student.base.check_size(*[recipe.views.local_crop_size] * 2), "views.local_crop_size")
    _check_masks(recipe, method)
    _check_batch(recipe, method)
    return method


def _check_masks(recipe: Recipe, method: StudentTeacherPreTrainedModel) -> None:
    if not method.equal_mask_counts:
        return
    if not recipe.masks.fixed_count:
        raise RecipeError(
            "this method needs as many masked patches in every image; set masks.shape to fixed_count_block or random, one "
            "ratio in masks.ratios, and masks.ratio_jitter=[0.0]"
        )
    grid, ratio = method.student.base.grid, recipe.masks.ratios[0]
    if not 0 < MASKS[recipe.masks.shape](grid, ratio, np.random.default_rng(0)).sum() < math.prod(grid):
        raise RecipeError(
            f"masks.ratios: expected one that masks some of the {math.prod(grid)} patches of a view and leaves others visible, "
            f"got {ratio}"
        )


def _check_batch(recipe: Recipe, method: StudentTeacherPreTrainedModel) -> None:
    optim = recipe.optim
    if method.in_batch_negatives and optim.gradient_accumulation_steps > 1:
        raise RecipeError("this objective compares the images of a batch, so optim.gradient_accumulation_steps must be 1")
    images = optim.batch_size // optim.gradient_accumulation_steps
    if images < 2 and any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in method.modules()):
        raise RecipeError(
            f"optim.batch_size: expected at least 2 images in a micro-batch, since this model has batch norms, got {images}; "
            "set optim.batch_size or optim.gradient_accumulation_steps"
        )


def build_engine(recipe: Recipe, method: StudentTeacherPreTrainedModel, accelerator: Accelerator) -> Engine:
    """Model and optimizer under the accelerator's engine; from here on, random numbers differ between processes."""
    set_seed(recipe.seed, device_specific=True)
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        method = torch.nn.SyncBatchNorm.convert_sync_batchnorm(method)
    optimizer = build_optimizer(method.student, recipe.optim.betas, method.freezable_parameters())
    engine = Engine(accelerator, method, optimizer, recipe.optim.mixed_precision == "bf16")
    method.train()
    return engine


def build_augmentation(recipe: Recipe, method: StudentTeacherPreTrainedModel) -> Augmentation:
    return Augmentation(recipe.views, recipe.masks, method.student.base.grid, recipe.seed, method.masked_views)


def forward_arguments(method: StudentTeacherPreTrainedModel, views: Views, temperature: float) -> dict:
    """Arguments of the model's forward pass: those of the augmented views and the teacher's temperature that it takes."""
    arguments = {**views.tensors(), "teacher_temperature": temperature}
    return {name: arguments[name] for name in signature(type(method).forward).parameters if name in arguments}


def forward_on_cpu(method: StudentTeacherPreTrainedModel, recipe: Recipe, views: Views, temperature: float):
    """Output of the model without an engine, in the precision of the recipe."""
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.optim.mixed_precision == "bf16"):
        return method(**forward_arguments(method, views, temperature))


def as_recipe_error(build: Callable, key: str = "model"):
    """Convert an error of the model to a `RecipeError` about this key."""
    try:
        return build()
    except ValueError as error:
        raise RecipeError(f"{key}: {error}") from error
