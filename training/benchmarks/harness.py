"""What all benchmarks share: their command line, a process of its own for every measurement, time and memory of a step."""

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median
from time import process_time
from typing import Any

import torch

from hssl_hf.engine.memory import peak_allocation


def isolated(function: Callable, *arguments) -> Any:
    """Call a function in a fresh process with one thread, so that no variant profits from what another has allocated."""
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (1,)) as executor:
        return executor.submit(function, *arguments).result()


def measure(step: Callable[[], None], repeats: int) -> dict[str, float]:
    """CPU seconds of a step (median), and the largest sum of tensors that it allocates beside those that exist, in MiB.

    The first step, in which libraries and optimizers allocate memory of their own, is not counted.
    """
    return {"seconds": seconds(step, repeats), "mebibytes": peak_allocation(step) / 2**20}


def seconds(function: Callable[[], object], repeats: int) -> float:
    """CPU seconds of a call: the median of some, after one that is not counted."""
    function()
    measured = []
    for _ in range(repeats):
        started = process_time()
        function()
        measured.append(process_time() - started)
    return median(measured)


def benchmark_parser(description: str, **defaults: int) -> argparse.ArgumentParser:
    """The command line of a benchmark, with an option per keyword."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    return parser
