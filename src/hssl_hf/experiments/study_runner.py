"""Trains and measures the runs of a study that have no records yet."""

import logging
import os
import signal
import subprocess
import sys
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path

from hssl_hf.data.files import append_below
from hssl_hf.evaluation.progress import ProgressBar
from hssl_hf.experiments.study import Measurement, Study

LOG = "train.log"
logger = logging.getLogger(__name__)


class Runner:
    """Trains runs in separate processes, one per core."""

    def __init__(self, path: Path, study: Study, overrides: list[str], folder: Path):
        self.path, self.study, self.overrides, self.folder = path, study, overrides, folder
        self.cores = sorted(os.sched_getaffinity(0))
        self.running: list[subprocess.Popen] = []

    def folder_of(self, variant: str, seed: int) -> Path:
        return self.folder / f"{variant.replace(' ', '-')}-{seed}"

    def train(self, variant: str, seed: int) -> None:
        """Train one run to its end.

        Raises:
            UserError: if it fails, with its output in train.log of its folder, or if that is a link or cannot be written.
        """
        folder, core = self.folder_of(variant, seed), self.cores.pop()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with append_below(folder, LOG) as log:
                command, environment = self._command(variant, seed, folder), {**os.environ, "OMP_NUM_THREADS": "1"}
                process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
                os.sched_setaffinity(process.pid, {core})
                self.running.append(process)
                code = process.wait()
        finally:
            self.cores.append(core)
        if code:
            raise RuntimeError(f"{variant} with seed {seed} ended with code {code}; see {folder / LOG}")

    def _command(self, variant: str, seed: int, folder: Path) -> list[str]:
        arguments = [str(self.path.parent / self.study.recipe), *self.overrides, *self.study.overrides(variant, seed)]
        arguments += [f"run.output_dir={folder}", "resume_from_checkpoint=auto", "probe.path=null", "run.export=false"]
        if variant not in self.study.searches:
            return [sys.executable, "-m", "hssl_hf", "pretrain", *arguments]
        arguments += ["--data-fraction", str(self.study.searches[variant])]
        arguments += [word for head in self.study.heads for word in ("--candidates", head)]
        return [sys.executable, "-m", "hssl_hf", "search", *arguments]

    def stop(self) -> None:
        """Stop every run after a checkpoint."""
        for process in self.running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)


def run(study: Study, runner: Runner, measurement: Measurement, jobs: int) -> None:
    """Train and measure all runs without records."""
    for seed in study.seeds:
        measurement.measure_references(seed)
    done = measurement.done()
    remaining = [pair for pair in study.runs() if pair not in done]
    waiting, pending = iter(remaining), {}
    with ThreadPoolExecutor(jobs) as pool, ProgressBar(total=len(remaining), unit="run") as bar:

        def start(count: int) -> None:
            for pair in islice(waiting, count):
                pending[pool.submit(runner.train, *pair)] = pair

        try:
            start(jobs)
            while pending:
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    pair = pending.pop(future)
                    future.result()
                    start(1)
                    measurement.measure(*pair, runner.folder_of(*pair))
                    measurement.compare(study, pair[1], runner.folder_of)
                    bar.set_postfix_str(f"{pair[0]}, seed {pair[1]}")
                    bar.update()
        finally:  # before the pool waits for what is running
            runner.stop()
    for seed in study.seeds:
        if missing := measurement.compare(study, seed, runner.folder_of):
            logger.warning(
                "no N_s and sIoU of %s with seed %d, since their predictions or those of %s were not kept; remove the records "
                "of both to train and measure them again",
                *(", ".join(missing), seed, study.baseline),
            )
