"""The loop of pre-training, on plain Accelerate."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

from accelerate.utils import gather_object, tqdm
from torch import Tensor

from hssl_hf.config.recipe import Recipe
from hssl_hf.data.loader import epoch_length, make_loader, restore_loader
from hssl_hf.data.views import Views
from hssl_hf.engine import memory
from hssl_hf.engine.checkpoint import STATE, CheckpointManager
from hssl_hf.engine.distributed import make_accelerator
from hssl_hf.engine.launch import check_launch
from hssl_hf.engine.optim import set_rates
from hssl_hf.engine.signals import SignalHandler
from hssl_hf.pretraining import setup
from hssl_hf.pretraining.artifacts import RunArtifacts
from hssl_hf.pretraining.diagnostics import NonFiniteError, TrainingMonitor, add_diagnostics, advice, require_finite
from hssl_hf.pretraining.initialization import load_initial_weights
from hssl_hf.pretraining.replay import BatchRecorder
from hssl_hf.pretraining.training_schedule import TrainingSchedule
from hssl_hf.runs.metric_logger import MetricAccumulator, MetricLogger, progress_metrics
from hssl_hf.visualization.figures import draw_views

logger = logging.getLogger(__name__)


class PreTrainer:
    """One pre-training run, from its recipe to its export; resumed from the newest checkpoint where there is one.

    Args:
        recipe: of the run.
        folder: of the run; created if needed.
    Raises:
        UserError: for recipes that cannot be run, data that cannot be read, launches that do not fit, damaged checkpoints.
    """

    def __init__(self, recipe: Recipe, folder: Path):
        recipe = setup.with_supported_precision(recipe)
        self.recipe, self.folder = recipe, folder
        setup.as_recipe_error(recipe.model_config)  # checked before anything is written
        setup.require_trackers(recipe.run.report_to)
        bf16 = recipe.optim.mixed_precision == "bf16"
        self.images = recipe.images_per_process(int(os.environ.get("WORLD_SIZE", 1)))  # of a micro-batch
        self.accelerator = make_accelerator(
            bf16, recipe.optim.gradient_accumulation_steps, self.images,
            log_with=list(recipe.run.report_to) or None, project_dir=str(folder),
        )  # fmt: skip
        check_launch(self.accelerator)
        self.checkpoints = CheckpointManager(folder / "checkpoints", recipe.run.save_total_limit)
        self.checkpoint = setup.open_run_directory(recipe, folder, self.checkpoints, self.accelerator)
        setup.use_all_cores(self.accelerator, bf16)
        self.method = setup.build_method(recipe)
        starts = recipe.init_from is not None and self.checkpoint is None
        fresh_heads = starts and setup.as_recipe_error(lambda: load_initial_weights(self.method, recipe.init_from))
        self.engine = setup.build_engine(recipe, self.method, self.accelerator)
        self.images_per_epoch = epoch_length(recipe.data)
        augmentation = setup.build_augmentation(recipe, self.method)
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        self.loader = make_loader(recipe.data, augmentation, self.images, rank, processes)
        self.schedule = TrainingSchedule(recipe, self.images_per_epoch, fresh_heads)
        self.corrupt: list[str] = []
        self.first_step, seconds = self._restore()
        self.accelerator.init_trackers("hssl_hf", config={"recipe": json.dumps(recipe.to_dict())})
        self.logger, self.metrics = MetricLogger(folder, self.accelerator, self.first_step), MetricAccumulator()
        self.artifacts = RunArtifacts(recipe, folder, self.logger, self.images_per_epoch, seconds)
        prototypes = self.method.config.num_prototypes if "prototypes" in self.method.freezable_parameters() else None
        self.monitor = TrainingMonitor(folder, prototypes, first_step=self.schedule.warmup_end)
        recorded = 1 if self.accelerator.device.type == "cpu" else min(16, recipe.run.logging_steps)
        self.recorder = BatchRecorder(recorded * recipe.optim.gradient_accumulation_steps)
        self.teacher_features: Tensor | None = None  # of the last micro-batch
        self.summary: list[str] = []  # of the finished run
        self.signals = SignalHandler()

    def train(self) -> int:
        """Train to the end, or until a signal stops it; returns the exit code of the program."""
        recipe, schedule, engine, first_step = self.recipe, self.schedule, self.engine, self.first_step
        if first_step == 0 or (first_step % schedule.probe_every == 0 and not self.logger.has(first_step, "knn_top1")):
            self._probe(first_step)
        batches = iter(self.loader)
        interval = 0.1 if sys.stderr.isatty() else float(os.environ.get("TQDM_MININTERVAL", 10))  # seconds between updates
        with tqdm(total=schedule.steps, initial=first_step, unit="step", smoothing=0.05, mininterval=interval) as bar:
            for step in range(first_step, schedule.steps):
                frozen = schedule.frozen_groups(step)
                set_rates(engine.optimizer, schedule.learning_rate(step), schedule.weight_decay(step), frozen)
                for _ in range(recipe.optim.gradient_accumulation_steps):
                    arguments = self._next_arguments(step, batches)
                    with self.accelerator.accumulate(engine.model):
                        output = engine.forward(**arguments)
                        engine.backward(output.loss)
                        engine.clip_and_step(step, frozen, recipe.optim.max_grad_norm, recipe.optim.grad_clip)
                    self._collect(output)
                if self.accelerator.device.type == "cpu":  # on other devices, which this would wait for, with every log line
                    self._require_finite_gradients()
                self.method.update_teacher(schedule.momentum(step + self.method.teacher_updates_first))
                done = step + 1
                save = done % recipe.run.save_steps == 0 or done == schedule.steps
                interrupted = self.accelerator.num_processes == 1 and self.signals.number > 0  # several agree in `_log`
                log = save or interrupted or done % recipe.run.logging_steps == 0
                stop = log and self._log(done, bar)
                if save or stop:
                    self._save(done)
                if stop:
                    logger.warning("interrupted after step %d; continue with resume_from_checkpoint=auto", done)
                    return self.signals.exit_code
                bar.update()
                if done % schedule.probe_every == 0 and done < schedule.steps:
                    self._probe(done)
        del batches
        self._finish()
        return 0

    def _next_arguments(self, step: int, batches: Iterator[Views]) -> dict:
        """Arguments of the model's forward pass for the next micro-batch."""
        started = perf_counter()
        batch = next(batches)
        self.metrics.waited += perf_counter() - started
        self.corrupt += batch.corrupt
        temperature = self.schedule.temperature(step)
        self.recorder.record(step, batch, temperature)
        views = batch.to(self.accelerator.device).augment_and_normalize(self.recipe.views)
        if step == 0 and self.accelerator.is_main_process:
            draw_views(views, self.recipe.views, self.folder / "figures" / "views.png")
        return setup.forward_arguments(self.method, views, temperature)

    def _collect(self, output) -> None:
        values = {"loss": output.loss, **output.losses, **(output.get("metrics") or {})}
        self.metrics.add(values | {"discrepancy": output.get("discrepancy")}, self.images * self.accelerator.num_processes)
        self.teacher_features = output.get("teacher_pooler_output")

    def _require_finite_gradients(self) -> None:
        if (step := int(self.engine.bad_step)) >= 0:
            capture = self.recorder.save(self.accelerator, self.engine.unsharded_model(), self.folder, step)
            raise NonFiniteError(
                f"the gradients of step {step + 1} are not finite. Its batch and the weights before it are in {capture}; to "
                f"see which losses and gradients: hssl-hf replay {capture}\n{advice(self.checkpoints.newest())}"
            )

    def _log(self, done: int, bar: tqdm) -> bool:
        """Write one line of the log; returns whether any process got a signal to stop."""
        values, (stop,) = self.metrics.read(self.accelerator, [float(self.signals.number > 0)])
        self._require_finite_gradients()
        values["learning_rate"] = self.schedule.learning_rate(done - 1)
        require_finite(values, done, self.folder / "not_finite.json", self.checkpoints.newest())
        values["memory_gib"] = memory.peak(self.accelerator.device) / memory.GIB
        memory.reset_peak(self.accelerator.device)
        values["epoch"] = done * self.recipe.optim.batch_size / self.images_per_epoch
        if self.accelerator.is_main_process:
            self.monitor.examine(done, values, add_diagnostics(values, self.teacher_features))
        self.logger.log(done, values)
        bar.set_postfix(progress_metrics(values), refresh=False)
        return stop > 0

    def _save(self, done: int) -> None:
        position = {"loader": self.loader.state_dict(), "corrupt": self.corrupt}
        state = {"processes": self.accelerator.num_processes, "seconds": self.artifacts.seconds}
        state["frozen_steps"] = self.schedule.frozen_steps
        state["data_fingerprint"] = self.artifacts.manifest["data"]["fingerprint"]
        self.checkpoints.save(self.accelerator, done, position, state, self.engine.unsharded_model)

    def _restore(self) -> tuple[int, float]:
        """Finished steps, and the seconds that they took."""
        if not self.checkpoint:
            return 0, 0.0
        accelerator = self.accelerator
        self.engine.check_processes(json.loads((self.checkpoint / STATE).read_text())["processes"])
        state, positions = self.checkpoints.load(accelerator, self.checkpoint)
        loaders = [position["loader"] for position in positions]
        restore_loader(self.loader, loaders, accelerator.process_index, accelerator.num_processes)
        if len(positions) == accelerator.num_processes:
            self.corrupt = positions[accelerator.process_index]["corrupt"]
        elif accelerator.is_main_process:
            self.corrupt = [name for position in positions for name in position["corrupt"]]
            logger.warning("resuming with %d processes a run of %d", accelerator.num_processes, len(positions))
        self.schedule.frozen_steps = state["frozen_steps"]
        return state["step"], state["seconds"]

    def _probe(self, done: int) -> None:
        method = self.engine.unsharded_model() if self.recipe.probe.path is not None else None
        if self.accelerator.is_main_process:
            self.artifacts.measure(method, done)
        self.accelerator.wait_for_everyone()
        memory.reset_peak(self.accelerator.device)

    def _finish(self) -> None:
        corrupt, method = gather_object(self.corrupt), self.engine.unsharded_model()
        if self.accelerator.is_main_process:
            self.summary = self.artifacts.finish(method, self.schedule.steps, corrupt)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
