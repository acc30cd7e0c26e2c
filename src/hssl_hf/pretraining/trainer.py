"""The loop of pre-training, on plain Accelerate."""

import json
import os
import sys
from inspect import signature
from pathlib import Path
from time import perf_counter

import timm
import torch
from accelerate.tracking import get_available_trackers
from accelerate.utils import gather_object, set_seed, tqdm
from transformers import AutoModelForPreTraining

from hssl_hf.config.recipe import Recipe, RecipeError, differences, load_recipe
from hssl_hf.data.augmentation import Augmentation
from hssl_hf.data.loader import epoch_length, make_loader, take_up
from hssl_hf.engine import memory
from hssl_hf.engine.checkpoint import STATE, Checkpoints
from hssl_hf.engine.distributed import Engine, make_accelerator
from hssl_hf.engine.launch import check_launch
from hssl_hf.engine.optim import build_optimizer, set_rates
from hssl_hf.engine.signals import Interrupt
from hssl_hf.pretraining.artifacts import Outcome
from hssl_hf.pretraining.diagnostics import Doctor, largest_rank, rank_me, require_finite, shares
from hssl_hf.pretraining.initialization import start_from
from hssl_hf.pretraining.replay import Recorder
from hssl_hf.pretraining.training_schedule import Plan
from hssl_hf.runs.metric_logger import Meter, Track, progress_figures
from hssl_hf.visualization.figures import draw_views


class Pretraining:
    """One run, from its recipe to its export."""

    def __init__(self, recipe: Recipe, folder: Path):
        self.recipe, self.folder = recipe, folder
        optim = recipe.optim
        config = _check(recipe.model_config)
        missing = set(recipe.run.trackers) - {str(tracker) for tracker in get_available_trackers()}
        if missing:
            raise RecipeError(f"run.trackers: {sorted(missing)} are not installed; for example: pip install 'hssl-hf[trackio]'")
        self.batch = recipe.images_per_process(int(os.environ.get("WORLD_SIZE", 1)))
        self.accelerator = make_accelerator(
            optim.mixed_precision == "bf16", optim.accumulate, self.batch,
            log_with=list(recipe.run.trackers) or None, project_dir=str(folder),
        )  # fmt: skip
        check_launch(self.accelerator, "training/pretrain.py")
        self._open_folder()
        if self.accelerator.device.type == "cpu":
            timm.layers.set_fused_attn(optim.mixed_precision == "no")  # in bf16 its backward pass takes many times as long
            cores = len(os.sched_getaffinity(0)) // self.accelerator.num_processes
            torch.set_num_threads(max(1, cores))  # `accelerate launch` leaves a process one thread
        self._build_model(config)
        self._build_stream()
        self.plan = Plan(recipe, self.images_per_epoch, self.fresh_heads)
        self.corrupt: list[str] = []

    def _open_folder(self) -> None:
        """Make the folder of the run; keep the recipe that it was started with, and refuse to resume with another."""
        saved = self.folder / "recipe.yaml"
        self.checkpoints = Checkpoints(self.folder / "checkpoints", self.recipe.run.keep_checkpoints)
        self.resumed = self.checkpoints.newest(self.accelerator, put_aside=self.recipe.resume == "auto")
        if self.resumed and self.recipe.resume == "never":
            raise RecipeError(f"{self.folder} holds a run already; continue it with resume=auto, or set run.output_dir")
        if self.resumed:
            changed = differences(load_recipe(saved).to_dict(), self.recipe.to_dict())
            if changed:
                raise RecipeError(
                    f"the run in {self.folder} was started with another recipe:\n  " + "\n  ".join(changed)
                    + "\nResume with the old values, or start a new run with run.output_dir=..."
                )  # fmt: skip
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.accelerator.is_main_process:
                self.recipe.save(saved)
        except OSError as error:
            raise RecipeError(f"cannot write to run.output_dir={self.folder}: {error}") from error

    def _build_model(self, config) -> None:
        recipe, accelerator = self.recipe, self.accelerator
        set_seed(recipe.seed)
        self.method = method = _check(lambda: AutoModelForPreTraining.from_config(config))
        _check(lambda: method.check_views(len(recipe.views.global_blur), recipe.views.local_number))
        _check(lambda: method.network(recipe.run.export_network))
        if recipe.views.local_number:
            _check(lambda: method.student.base.check_size(recipe.views.local_size, recipe.views.local_size))
        if method.counted_masks and not recipe.masks.counted:
            raise RecipeError(
                "this method hides equally many patches in every image; set masks.shape to counted_block or random, one ratio "
                "in masks.ratios, and masks.spreads=[0.0]"
            )
        if method.in_batch and recipe.optim.accumulate > 1:
            raise RecipeError("this objective compares the images of a batch, so optim.accumulate must be 1")
        starts = recipe.init_from is not None and self.resumed is None
        self.fresh_heads = starts and _check(lambda: start_from(method, recipe.init_from))
        if recipe.run.activation_checkpointing:
            method.activation_checkpointing_enable()
        set_seed(recipe.seed, device_specific=True)
        model = method
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        optimizer = build_optimizer(method.student, recipe.optim.betas, method.parts())
        self.engine = Engine(accelerator, model, optimizer, recipe.optim.mixed_precision == "bf16")
        self.arguments = signature(method.forward).parameters.keys()
        method.train()

    def _build_stream(self) -> None:
        self.images_per_epoch = epoch_length(self.recipe.data)
        self.place = (self.accelerator.process_index, self.accelerator.num_processes)
        grid, masked = self.method.student.base.grid, self.method.masked_views
        augmentation = Augmentation(self.recipe.views, self.recipe.masks, grid, self.recipe.seed, masked)
        self.loader = make_loader(self.recipe.data, augmentation, self.batch, *self.place)

    def run(self) -> int:
        """Train from the newest checkpoint, or from the start, to the end; returns the exit code."""
        first, seconds = self._resume()
        self.accelerator.init_trackers("hssl_hf", config={"recipe": json.dumps(self.recipe.to_dict())})
        self.track, self.meter, interrupt = Track(self.folder, self.accelerator, first), Meter(), Interrupt()
        self.outcome = Outcome(self.recipe, self.folder, self.accelerator, self.track, self.images_per_epoch, seconds)
        prototypes = getattr(self.method.config, "num_prototypes", None) if "prototypes" in self.method.parts() else None
        self.doctor = Doctor(self.folder, prototypes, first_step=self.plan.settled)
        kept = 1 if self.accelerator.device.type == "cpu" else min(16, self.recipe.run.log_every_steps)
        self.recorder = Recorder(kept * self.recipe.optim.accumulate)
        if first == 0 or (first % self.plan.probe_every == 0 and not self.track.has(first, "knn_top1")):
            self._measure(first)
        views, run = iter(self.loader), self.recipe.run
        pause = 0.1 if sys.stderr.isatty() else float(os.environ.get("TQDM_MININTERVAL", 10))  # spare the logs of batch jobs
        with tqdm(total=self.plan.steps, initial=first, unit="step", smoothing=0.05, mininterval=pause) as bar:
            for step in range(first, self.plan.steps):
                self._train_step(step, views)
                done = step + 1
                save = done % run.save_every_steps == 0 or done == self.plan.steps
                alone = self.accelerator.num_processes == 1
                if save or done % run.log_every_steps == 0 or (alone and interrupt.number):
                    values, (stop,) = self.meter.read(self.accelerator, [float(interrupt.number > 0)])
                    self._log(done, values, bar)
                    if save or stop:
                        self._save(done)
                    if stop:
                        print(f"\ninterrupted after step {done}; continue with resume=auto", file=sys.stderr)
                        return interrupt.exit_code
                bar.update()
                if done % self.plan.probe_every == 0 and done < self.plan.steps:
                    self._measure(done)
        del views
        self._finish()
        return 0

    def _train_step(self, step: int, batches) -> None:
        recipe, accelerator = self.recipe, self.accelerator
        still = self.plan.still(step)
        set_rates(self.engine.optimizer, self.plan.learning_rate(step), self.plan.weight_decay(step), still)
        for _ in range(recipe.optim.accumulate):
            started = perf_counter()
            batch = next(batches)
            self.meter.waited += perf_counter() - started
            self.corrupt += batch.corrupt
            temperature = self.plan.temperature(step)
            self.recorder.note(step, batch, temperature)
            views = batch.to(accelerator.device).coloured(recipe.views)
            if step == 0 and accelerator.is_main_process:
                draw_views(views, recipe.views, self.folder / "pictures" / "views.png")
            arguments = {**views.tensors(), "teacher_temperature": temperature}
            with accelerator.accumulate(self.engine.model):
                output = self.engine.forward(**{name: arguments[name] for name in self.arguments & arguments.keys()})
                self.engine.backward(output.loss)
                self.engine.step(step, still, recipe.optim.clip, recipe.optim.clip_norm)
            values = {"loss": output.loss, **output.parts, "discrepancy": output.get("discrepancy")}
            self.meter.add(values, self.batch * accelerator.num_processes)
            self.features = output.get("features")  # of the last batch
        if accelerator.device.type == "cpu":  # others would have to wait for the answer, and are asked with the log
            self._require_finite_gradients()
        self.method.update_teacher(self.plan.momentum(step + self.method.moves_before_forward))

    def _require_finite_gradients(self) -> None:
        if (step := int(self.engine.bad_step)) >= 0:
            newest = next(reversed(self.checkpoints.all()), None)
            self.recorder.stop(self.accelerator, self.engine.whole(), self.folder, step, newest)

    def _log(self, done: int, values: dict[str, float], bar) -> None:
        self._require_finite_gradients()
        values["learning_rate"] = self.plan.learning_rate(done - 1)
        newest = next(reversed(self.checkpoints.all()), None)
        require_finite(values, done, self.folder / "not_finite.json", newest)
        values["memory_gib"] = memory.peak(self.accelerator.device) / memory.GIB
        memory.reset_peak(self.accelerator.device)
        values["epoch"] = done * self.recipe.optim.batch_size / self.images_per_epoch
        if self.accelerator.is_main_process:
            self._examine(done, values)
        self.track.log(done, values)
        bar.set_postfix(progress_figures(values), refresh=False)

    def _examine(self, done: int, values: dict[str, float]) -> None:
        rank = None
        if self.features is not None:
            values["rank_me"], rank = rank_me(self.features), largest_rank(self.features)
        values |= shares(values)
        self.doctor.examine(done, values, rank)

    def _save(self, done: int) -> None:
        position = {"loader": self.loader.state_dict(), "corrupt": self.corrupt}
        state = {
            "processes": self.accelerator.num_processes,
            "seconds": self.outcome.seconds,
            "frozen_steps": self.plan.frozen_steps,
        }
        self.checkpoints.save(self.accelerator, done, position, state, self.engine.whole)

    def _resume(self) -> tuple[int, float]:
        """Finished steps, and the seconds that they took."""
        if not self.resumed:
            return 0, 0.0
        accelerator = self.accelerator
        self.engine.check_processes(json.loads((self.resumed / STATE).read_text())["processes"])
        state, positions = self.checkpoints.load(accelerator, self.resumed)
        take_up(self.loader, [position["loader"] for position in positions], *self.place)
        if len(positions) == accelerator.num_processes:
            self.corrupt = positions[accelerator.process_index]["corrupt"]
        elif accelerator.is_main_process:
            self.corrupt = [name for position in positions for name in position["corrupt"]]
            print(f"resuming with {accelerator.num_processes} processes what {len(positions)} began", file=sys.stderr)
        self.plan.frozen_steps = state["frozen_steps"]
        return state["step"], state["seconds"]

    def _measure(self, done: int) -> None:
        method = self.engine.whole() if self.recipe.probe.path is not None else None
        if self.accelerator.is_main_process:
            self.outcome.measure(method, done)
        self.accelerator.wait_for_everyone()
        memory.reset_peak(self.accelerator.device)

    def _finish(self) -> None:
        corrupt, method = gather_object(self.corrupt), self.engine.whole()
        if self.accelerator.is_main_process:
            print("\n".join(self.outcome.finish(method, self.plan.steps, corrupt)))
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()


def _check(build):
    """Turn a refusal of the model's configuration into an error of the recipe."""
    try:
        return build()
    except ValueError as error:
        raise RecipeError(f"model: {error}") from error
