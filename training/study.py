"""Run a study: `python training/study.py [study.yaml] [a.b=c ...]`.

Every arm with every seed is trained by training/pretrain.py, a run per core side by side, and measured once. What was
interrupted goes on where it stopped, and what is measured already is not run again: call it as often as it takes.
"""

import argparse
import os
import signal
import subprocess
import sys
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import torch
from tqdm.auto import tqdm

from hssl_hf.run_folder import read_lines
from hssl_hf.study import Measurement, Study, study_recipe
from hssl_hf.study_report import Findings, draw, rank_table, table

TRAINING = Path(__file__).parent
DEFAULT = TRAINING / "studies" / "cifar10.yaml"


class Runner:
    """Trains runs in processes of their own, each on a core of its own."""

    def __init__(self, path: Path, study: Study, overrides: list[str], folder: Path):
        self.path, self.study, self.overrides, self.folder = path, study, overrides, folder
        self.cores = sorted(os.sched_getaffinity(0))
        self.running: list[subprocess.Popen] = []

    def folder_of(self, arm: str, seed: int) -> Path:
        return self.folder / f"{arm.replace(' ', '-')}-{seed}"

    def train(self, arm: str, seed: int) -> None:
        """Train one run to its end.

        Raises:
            RuntimeError: if it fails; its output is in train.log of its folder.
        """
        folder, core = self.folder_of(arm, seed), self.cores.pop()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with (folder / "train.log").open("a") as log:
                command, quiet = self._command(arm, seed, folder), {**os.environ, "OMP_NUM_THREADS": "1"}
                process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=quiet)
                os.sched_setaffinity(process.pid, {core})
                self.running.append(process)
                code = process.wait()
        finally:
            self.cores.append(core)
        if code:
            raise RuntimeError(f"{arm} with seed {seed} ended with code {code}; see {folder / 'train.log'}")

    def _command(self, arm: str, seed: int, folder: Path) -> list[str]:
        values = [
            *self.overrides,
            *self.study.overrides(arm, seed),
            f"run.output_dir={folder}",
            "resume=auto",
            "probe.path=null",
            "run.export=false",
        ]
        script, more = "pretrain.py", []
        if arm in self.study.searches:
            script, more = "search_heads.py", ["--share", str(self.study.searches[arm])]
            more += ["--candidates", *self.study.heads] if self.study.heads else []
        return [sys.executable, str(TRAINING / script), str(self.path.parent / self.study.recipe), *values, *more]

    def stop(self) -> None:
        """Let every run write a checkpoint and end."""
        for process in self.running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="*", metavar="study.yaml | a.b=c", help="a study, and values for all its arms")
    parser.add_argument("--folder", type=Path, help="of the runs (default: runs/study-<name of the study>)")
    parser.add_argument("--results", type=Path, help="file of the records (default: model_cards/results/study_<name>.jsonl)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time (default: one per core)")
    options = parser.parse_intermixed_args()
    path = next((Path(a) for a in options.arguments if "=" not in a), DEFAULT)
    folder = options.folder or Path("runs") / f"study-{path.stem}"
    results = options.results or TRAINING.parent / "model_cards" / "results" / f"study_{path.stem}.jsonl"
    overrides = [a for a in options.arguments if "=" in a]
    torch.set_num_threads(1)
    try:
        study = Study.read(path)
        measurement = Measurement(study_recipe(path, study, overrides), results)
        runner = Runner(path, study, overrides, folder)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        run(study, runner, measurement, max(1, options.jobs))
        findings = Findings(study, read_lines(results))
        draw(findings, folder / "study.png")
        print("\n".join([*table(findings), "", *rank_table(findings), f"plots  {folder / 'study.png'}", f"records  {results}"]))
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 75
    return 0


def run(study: Study, runner: Runner, measurement: Measurement, jobs: int) -> None:
    """Train and measure whatever has no records yet."""
    for seed in study.seeds:
        measurement.measure_references(seed)
    done = measurement.done()
    left = [pair for pair in study.runs() if pair not in done]
    waiting, pending = iter(left), {}
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(left), unit="run") as bar:

        def start() -> None:
            if (pair := next(waiting, None)) is not None:
                pending[pool.submit(runner.train, *pair)] = pair

        try:
            for _ in range(jobs):
                start()
            while pending:
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    pair = pending.pop(future)
                    future.result()
                    start()
                    measurement.measure(*pair, runner.folder_of(*pair))
                    bar.set_postfix_str(f"{pair[0]}, seed {pair[1]}")
                    bar.update()
        finally:  # before the pool waits for what is running
            runner.stop()


if __name__ == "__main__":
    sys.exit(main())
