"""The processes of a run: as many as requested, and in one group?"""

import argparse
import logging
import os
import shlex
from itertools import takewhile
from pathlib import Path

import psutil
import torch
import yaml
from accelerate import Accelerator
from accelerate.commands.config.config_args import default_config_file

from hssl_hf.errors import UserError

logger = logging.getLogger(__name__)
LAUNCH_OPTIONS = "HSSL_HF_LAUNCH_OPTIONS"  # of our launcher, for the processes that it starts


class LaunchError(UserError):
    """The processes are not those that were requested; the message holds the command that works."""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def check_launch(accelerator: Accelerator, mixed_precision: str = "no") -> None:
    """Compare the requested processes with those that run and reach each other.

    A launcher may quietly start one process only, or several that each believe to be alone.

    Args:
        mixed_precision: of the recipe, which decides; the launcher's is named in a warning if it is another.
    Raises:
        LaunchError: if fewer processes run than requested, or if they do not form one group.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", mixed_precision) and accelerator.is_main_process:
        logger.warning(
            "the launcher's mixed_precision=%s has no effect: the recipe decides, here optim.mixed_precision=%s", launched,
            mixed_precision,
        )  # fmt: skip
    options = _launcher_options()
    requested = max(int(os.environ.get("WORLD_SIZE", 1)), _requested(options, "num_processes"))
    machines = _requested(options, "num_machines")
    connected = int(accelerator.reduce(torch.ones(1, device=accelerator.device)).item())
    if requested == accelerator.num_processes == connected and (requested == 1 or accelerator.distributed_type != "NO"):
        return
    config = "multi_gpu" if torch.cuda.is_available() else "cpu"
    command, where = f"--config_file {config} --num_processes {requested}", ""
    if machines > 1:
        where = f" on each of the {machines} machines, with its number from 0 and the address of the first"
        command += f" --num_machines {machines} --machine_rank NUMBER --main_process_ip ADDRESS --main_process_port 29500"
    raise LaunchError(
        f"{requested} processes were requested, but the process group has {accelerator.num_processes}, of which "
        f"{connected} responded (mode {accelerator.distributed_type}). Start them{where} with\n"
        f"    hssl-hf pretrain --launch '{command}' ..."
    )


def _launcher_options() -> list[str] | None:
    """Options of the `accelerate launch` that has started this process; None if it was something else."""
    if LAUNCH_OPTIONS in os.environ:
        return shlex.split(os.environ[LAUNCH_OPTIONS])
    try:
        arguments = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return None
    if not any("accelerate" in argument for argument in arguments) or "launch" not in arguments:
        return None
    return list(takewhile(lambda argument: not argument.endswith(".py"), arguments[arguments.index("launch") + 1 :]))


def _requested(options: list[str] | None, name: str) -> int:
    """A number among the launcher's options or in its configuration file; 1 if in neither."""
    if options is None:
        return 1
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", dest="number", type=int)
    parser.add_argument("--config_file", "--config-file", type=Path, default=default_config_file)
    parsed, _ = parser.parse_known_args(options)
    if parsed.number is not None:
        return parsed.number
    config = Path(parsed.config_file)
    return int((yaml.safe_load(config.read_text()) or {}).get(name, 1)) if config.is_file() else 1
