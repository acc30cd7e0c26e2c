"""Variants of a benchmark: each runs in a process of its own, one thread, and reports what a step costs there."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time

import torch

from hssl_hf.engine.memory import held_by

ROOT = Path(__file__).resolve().parents[2]


def measure(step: Callable[[], None], repeats: int) -> dict[str, float]:
    """CPU seconds of a step (median), and the largest sum of tensors that it holds at once beside what it found, in MiB.

    The first step, in which libraries and optimizers take memory of their own, is not counted.
    """
    return {"seconds": seconds(step, repeats), "mebibytes": held_by(step) / 2**20}


def seconds(function: Callable[[], object], repeats: int) -> float:
    """CPU seconds of a call: the median of some, after one that is not counted."""
    function()
    found = []
    for _ in range(repeats):
        started = process_time()
        function()
        found.append(process_time() - started)
    return median(found)


def run_variant(benchmark: str, arguments: list, repeats: int, python: str = sys.executable) -> dict[str, float]:
    """Run one variant of a benchmark, `python -m benchmark --variant ARGUMENT ...`, in a process of its own.

    Args:
        benchmark: the file of the benchmark.
    """
    name = f"training.benchmarks.{Path(benchmark).stem}"
    command = [python, "-m", name, "--repeats", str(repeats), "--variant", *map(str, arguments)]
    with tempfile.TemporaryDirectory() as elsewhere:
        paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])  # for an environment that this package is not installed in
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=elsewhere, env={**os.environ, "PYTHONPATH": paths}
        )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def parse(description: str, repeats: int, **more) -> argparse.Namespace:
    """Command line of a benchmark: `--repeats`, the hidden `--variant`, and further options with their defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--variant", nargs="+", help=argparse.SUPPRESS)
    for name, (default, help_text) in more.items():
        if isinstance(default, bool):
            parser.add_argument(f"--{name}", action="store_true", help=help_text)
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default, help=help_text)
    options = parser.parse_args()
    if options.variant:
        torch.set_num_threads(1)
    return options
