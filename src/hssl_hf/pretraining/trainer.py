"""The loop of pre-training, on plain Accelerate."""

import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

from accelerate.utils import gather_object
from torch import Tensor

from hssl_hf.config.recipe import Recipe
from hssl_hf.data.loader import epoch_length, make_loader, restore_loader
from hssl_hf.data.local_dataset import printable
from hssl_hf.data.views import Views
from hssl_hf.engine import memory
from hssl_hf.engine.checkpoint import CheckpointError, CheckpointManager
from hssl_hf.engine.distributed import any_process, make_accelerator, on_main_process
from hssl_hf.engine.full_state import unsharded_model
from hssl_hf.engine.launch import check_launch
from hssl_hf.engine.optim import set_rates
from hssl_hf.engine.signals import SignalHandler, inherited_blocked
from hssl_hf.errors import UserError
from hssl_hf.evaluation.progress import ProgressBar
from hssl_hf.models.modeling_student_teacher import StudentTeacherPreTrainedModel
from hssl_hf.pretraining import setup
from hssl_hf.pretraining.artifacts import RunArtifacts
from hssl_hf.pretraining.diagnostics import NonFiniteError, TrainingMonitor, add_diagnostics, advice, require_finite
from hssl_hf.pretraining.initialization import load_initial_weights
from hssl_hf.pretraining.replay import BatchRecorder
from hssl_hf.pretraining.training_schedule import TrainingSchedule
from hssl_hf.publish.origin import Origin, settle
from hssl_hf.runs.manifest import origin_of
from hssl_hf.runs.metric_logger import MetricAccumulator, MetricLogger, progress_metrics
from hssl_hf.runs.run_lock import RunLock
from hssl_hf.visualization.figures import draw_views

logger = logging.getLogger(__name__)


class PreTrainer:
    """One pre-training run, from its recipe to its export; resumed from the newest checkpoint where there is one.

    Args:
        recipe: of the run.
        folder: of the run; created if needed.
        lock: of the folder, which the main process claims and the caller gives back.
        signals: that stop the run.
    Raises:
        UserError: for recipes that cannot be run, data that cannot be read, launches that do not fit, damaged checkpoints, and
            a folder that belongs to another run.
    """

    def __init__(self, recipe: Recipe, folder: Path, lock: RunLock | None = None, signals: SignalHandler | None = None):
        recipe = setup.with_supported_precision(recipe)
        self.recipe, self.folder = recipe, folder
        self.lock, self.signals = lock or RunLock(folder), signals or SignalHandler()
        setup.as_recipe_error(recipe.model_config)  # checked before anything is written
        setup.require_trackers(recipe.run.report_to)
        bf16 = recipe.optim.mixed_precision == "bf16"
        self.images = recipe.images_per_process(int(os.environ.get("WORLD_SIZE", 1)))  # of a micro-batch
        self.accelerator = make_accelerator(
            bf16, recipe.optim.gradient_accumulation_steps, self.images,
            log_with=list(recipe.run.report_to) or None, project_dir=str(folder),
        )  # fmt: skip
        check_launch(self.accelerator, recipe.optim.mixed_precision)
        self.checkpoints = CheckpointManager(folder / "checkpoints", recipe.run.save_total_limit)
        open_run = lambda: setup.open_run_directory(recipe, self.lock, self.checkpoints)  # noqa: E731
        self.checkpoint = on_main_process(self.accelerator, open_run)
        setup.use_all_cores(self.accelerator, bf16)
        self.method = setup.build_method(recipe)
        fresh_heads, origin = self._initialize()
        self.engine = setup.build_engine(recipe, self.method, self.accelerator)
        self.images_per_epoch = epoch_length(recipe.data)
        augmentation = setup.build_augmentation(recipe, self.method)
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        self.loader = make_loader(recipe.data, augmentation, self.images, rank, processes)
        self.schedule = TrainingSchedule(recipe, self.images_per_epoch, fresh_heads)
        self.corrupt: list[str] = []
        self.first_of_several = 0  # images so far whose files hold further ones
        self.first_step, seconds = self._restore()
        resumed = {"tensorboard": {"purge_step": self.first_step + 1}} if self.first_step else {}  # no step twice
        self.accelerator.init_trackers("hssl_hf", {"recipe": json.dumps(recipe.to_dict())}, resumed)
        self.logger, self.metrics = MetricLogger(folder, self.accelerator, self.first_step), MetricAccumulator()
        stopped = lambda: self.signals.number > 0  # noqa: E731
        self.artifacts = RunArtifacts(recipe, folder, self.logger, self.images_per_epoch, seconds, origin, stopped)
        prototypes = self.method.config.num_prototypes if "prototypes" in self.method.freezable_parameters() else None
        self.monitor = TrainingMonitor(folder, prototypes, first_step=self.schedule.warmup_end)
        recorded = 1 if self.accelerator.device.type == "cpu" else min(16, recipe.run.logging_steps)
        self.recorder = BatchRecorder(recorded * recipe.optim.gradient_accumulation_steps)
        self.loss_terms: tuple[str, ...] = ()
        self.teacher_features: Tensor | None = None  # of the last micro-batch
        self.summary: list[str] = []  # of the finished run

    def _initialize(self) -> tuple[bool, Origin | None]:
        """Load the initial weights of a new run.

        Returns:
            whether its heads are fresh behind a base that is not; and the origin of the weights, also of a resumed run.
        """
        recipe, config = self.recipe, self.method.config
        if recipe.init_from is not None and self.checkpoint is None:
            fresh_heads, origin = setup.as_recipe_error(lambda: load_initial_weights(self.method, recipe.init_from))
        else:
            fresh_heads, origin = False, origin_of(self.folder, recipe)
        config.license = settle(config.license, None, origin)
        return fresh_heads, origin

    def train(self) -> int:
        """Train to the end, or until a signal stops it; returns the exit code. For use within `SignalHandler.deferred`."""
        recipe, schedule, engine, first_step = self.recipe, self.schedule, self.engine, self.first_step
        probe = first_step % schedule.probe_every == 0 and first_step < schedule.steps
        if probe and not self.logger.has(first_step, "knn_top1") and self._probe(first_step):
            return self._interrupted(first_step)
        with inherited_blocked():
            batches = iter(self.loader)
        with self._progress_bar() as bar:
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
                signaled = self.accelerator.num_processes == 1 and self.signals.number > 0  # several agree in `_log`
                log = save or signaled or done % recipe.run.logging_steps == 0
                stop = log and self._log(done, bar)
                self._advance(bar)
                if not stop and done % schedule.probe_every == 0 and done < schedule.steps:
                    stop = self._probe(done)
                if save or stop:
                    self._save(done)
                if stop:
                    return self._interrupted(done)
        del batches
        return self._finish()

    def _next_arguments(self, step: int, batches: Iterator[Views]) -> dict:
        """Arguments of the model's forward pass for the next micro-batch."""
        started = perf_counter()
        batch = next(batches)
        self.metrics.waited += perf_counter() - started
        self.corrupt += batch.corrupt
        self._count_first_of_several(batch.first_of_several)
        temperature = self.schedule.temperature(step)
        self.recorder.record(step, batch, temperature)
        views = batch.to(self.accelerator.device).augment_and_normalize(self.recipe.views)
        if step == 0 and self.accelerator.is_main_process:
            draw_views(views, self.recipe.views, self.folder / "figures" / "views.png")
        return setup.forward_arguments(self.method, views, temperature)

    def _count_first_of_several(self, names: tuple[str, ...]) -> None:
        """Count images whose files hold further ones, with a warning for the first of them."""
        if names and not self.first_of_several and self.accelerator.is_main_process:
            logger.warning(
                "%s holds several images (frames, pages or slices): only the first image of such files is read; to train on "
                "the others too, save each as a file of its own",
                printable(names[0]),
            )
        self.first_of_several += len(names)

    def _collect(self, output) -> None:
        values = {"loss": output.loss, **output.losses, **(output.get("metrics") or {})}
        self.metrics.add(values | {"discrepancy": output.get("discrepancy")}, self.images * self.accelerator.num_processes)
        self.loss_terms, self.teacher_features = tuple(output.losses), output.get("teacher_pooler_output")

    def _require_finite_gradients(self) -> None:
        if (step := int(self.engine.bad_step)) >= 0:
            try:
                capture = self.recorder.save(self.accelerator, unsharded_model(self.engine), self.folder, step)
            except UserError as error:
                kept = f"Its batch was not kept, since {error}"
            else:
                kept = f"Its batch and the weights before it are in {capture}; to see which losses and gradients: "
                kept += f"hssl-hf replay {capture}"
            raise NonFiniteError(
                f"the gradients of step {step + 1} are not finite. {kept}\n{advice(self.checkpoints.newest())}"
            )

    def _log(self, done: int, bar: ProgressBar) -> bool:
        """Write one line of the log; returns whether any process got a signal to stop."""
        values, (stop,) = self.metrics.read(self.accelerator, [float(self.signals.number > 0)])
        self._require_finite_gradients()
        values["learning_rate"] = self.schedule.learning_rate(done - 1)
        require_finite(values, done, self.folder / "not_finite.json", self.checkpoints.newest())
        values["memory_gib"] = memory.peak(self.accelerator.device) / memory.GIB
        memory.reset_peak(self.accelerator.device)
        values["epoch"] = done * self.recipe.optim.batch_size / self.images_per_epoch
        if self.accelerator.is_main_process:
            self.monitor.examine(done, values, add_diagnostics(values, self.loss_terms, self.teacher_features))
        self.logger.log(done, values)
        bar.set_postfix(progress_metrics(values, self.loss_terms), refresh=False)
        return stop > 0

    def _save(self, done: int) -> None:
        counts = {"corrupt": self.corrupt, "first_of_several": self.first_of_several}
        position = {"loader": self.loader.state_dict(), **counts}
        state = {"seconds": self.artifacts.seconds, "frozen_steps": self.schedule.frozen_steps}
        state["data_fingerprint"] = self.artifacts.manifest["data"]["fingerprint"]
        on_main_process(self.accelerator, self.lock.require)
        self.checkpoints.save(self.engine, done, position, state)

    def _restore(self) -> tuple[int, float]:
        """Finished steps, and the seconds that they took."""
        if not self.checkpoint:
            return 0, 0.0
        accelerator = self.accelerator
        state, positions = self.checkpoints.load(self.engine, self.checkpoint)
        loaders = [position["loader"] for position in positions]
        restore_loader(self.loader, loaders, accelerator.process_index, accelerator.num_processes)
        if len(positions) == accelerator.num_processes:
            self._restore_counts([positions[accelerator.process_index]])
        elif accelerator.is_main_process:
            self._restore_counts(positions)
            logger.warning("this run had %d processes and is resumed with %d", len(positions), accelerator.num_processes)
        self.schedule.frozen_steps = state["frozen_steps"]
        if state["step"] > self.schedule.steps:
            raise CheckpointError(
                f"{self.checkpoint} is at step {state['step']}, beyond the {self.schedule.steps} steps of this recipe; set "
                "optim.epochs as it was, or start a new run with another run.output_dir"
            )
        return state["step"], state["seconds"]

    def _restore_counts(self, positions: list[dict]) -> None:
        self.corrupt = [name for position in positions for name in position["corrupt"]]
        self.first_of_several = sum(position.get("first_of_several", 0) for position in positions)

    def _probe(self, done: int, method: StudentTeacherPreTrainedModel | None = None) -> bool:
        """Evaluate by all processes; returns whether a signal stops the run, after which it is repeated.

        Args:
            method: with full weights, where they are at hand.
        """
        method = None if self.recipe.probe.path is None else method or unsharded_model(self.engine)
        self.artifacts.measure(method, done, last=done == self.schedule.steps)
        memory.reset_peak(self.accelerator.device)
        return any_process(self.accelerator, self.signals.number > 0)

    def _finish(self) -> int:
        corrupt, several = gather_object(self.corrupt), sum(gather_object([self.first_of_several]))
        method, steps = unsharded_model(self.engine), self.schedule.steps
        stop = self._probe(steps, method)

        def export() -> None:
            self.summary = self.artifacts.finish(method, steps, corrupt, several)

        if stop or self._run_on_main_process(export):
            return self._interrupted(steps)
        self.accelerator.end_training()
        return 0

    def _run_on_main_process(self, work: Callable[[], None]) -> bool:
        """Call a function that a signal cuts short while the other processes wait; returns whether any has got a signal."""
        on_main_process(self.accelerator, lambda: self.signals.run_until_signal(work))
        return any_process(self.accelerator, self.signals.number > 0)

    def _interrupted(self, done: int) -> int:
        """Report the interruption; returns the exit code."""
        self.lock.interrupted = True
        if self.accelerator.is_main_process:
            saved = f"after step {done}; continue with resume_from_checkpoint=auto"
            logger.warning("interrupted %s", saved if done else "before the first step; start again")
        return self.signals.exit_code

    def _progress_bar(self) -> ProgressBar:
        total, main = self.schedule.steps, self.accelerator.is_main_process
        return ProgressBar(total=total, initial=self.first_step, unit="step", smoothing=0.05, disable=not main)

    def _advance(self, bar: ProgressBar) -> None:
        bar.update()
        if bar.broken:
            self.signals.receive(signal.SIGHUP)  # as where a terminal is gone
