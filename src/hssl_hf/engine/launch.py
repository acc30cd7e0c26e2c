"""The processes of a run: as many as requested, and in one group?"""

import argparse
import os
from itertools import takewhile
from pathlib import Path

import psutil
import torch
import yaml
from accelerate import Accelerator
from accelerate.commands.config.config_args import default_config_file

from hssl_hf.errors import UserError


class LaunchError(UserError):
    """The processes are not those that were requested; the message holds the command that works."""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def check_launch(accelerator: Accelerator) -> None:
    """Compare the requested processes with those that run and reach each other.

    A launcher may quietly start one process only, or several that each believe to be alone.

    Raises:
        LaunchError: if fewer processes run than requested, or if they do not form one group.
    """
    requested = max(int(os.environ.get("WORLD_SIZE", 1)), _requested_from_launcher())
    connected = int(accelerator.reduce(torch.ones(1, device=accelerator.device)).item())
    if requested == accelerator.num_processes == connected and (requested == 1 or accelerator.distributed_type != "NO"):
        return
    config = "multi_gpu" if torch.cuda.is_available() else "cpu"
    raise LaunchError(
        f"{requested} processes were requested, but this one sees {accelerator.num_processes} and {connected} respond "
        f"(mode {accelerator.distributed_type}). Start them with\n"
        f"    hssl-hf pretrain --launch '--config_file {config} --num_processes {requested}' ..."
    )


def _requested_from_launcher() -> int:
    """Processes that the parent `accelerate launch` was given, by its arguments or its configuration file; else 1."""
    try:
        arguments = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return 1
    if not any("accelerate" in argument for argument in arguments) or "launch" not in arguments:
        return 1
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--num_processes", "--num-processes", type=int)
    parser.add_argument("--config_file", "--config-file", type=Path, default=default_config_file)
    own = takewhile(lambda argument: not argument.endswith(".py"), arguments[arguments.index("launch") + 1 :])
    options, _ = parser.parse_known_args(list(own))
    if options.num_processes is not None:
        return options.num_processes
    config = options.config_file
    return int((yaml.safe_load(config.read_text()) or {}).get("num_processes", 1)) if config.is_file() else 1
