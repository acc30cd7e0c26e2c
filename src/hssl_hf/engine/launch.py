"""The processes of a run: are they those that were asked for, and have they been asked to stop?"""

import os
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
import yaml
from accelerate import Accelerator
from accelerate.commands.config.config_args import default_config_file

from hssl_hf.errors import UserError

COMMAND = "accelerate launch --config_file training/accelerate/{config}.yaml --num_processes {n} {script}"


class LaunchError(UserError):
    """The processes are not those that were asked for; the message holds the command that works."""


def check_launch(accelerator: Accelerator, script: str) -> None:
    """Compare the processes asked for with those that run and answer each other.

    A launcher may quietly start one process only, or several that each believe to be alone.

    Raises:
        LaunchError: if fewer processes run than asked for, or if they do not form one group.
    """
    asked = max(int(os.environ.get("WORLD_SIZE", 1)), _asked_of_launcher())
    connected = 1
    if dist.is_initialized():
        ones = torch.ones(1, device=accelerator.device)
        dist.all_reduce(ones)
        connected = int(ones.item())
    if asked == accelerator.num_processes == connected and (asked == 1 or accelerator.distributed_type != "NO"):
        return
    works = COMMAND.format(n=asked, script=script, config="multi_gpu" if torch.cuda.is_available() else "cpu")
    raise LaunchError(
        f"{asked} processes were asked for, but this one sees {accelerator.num_processes} and {connected} answer "
        f"(mode {accelerator.distributed_type}). Start them with\n    {works}"
    )


def _asked_of_launcher() -> int:
    """Processes that the parent `accelerate launch` was told to start, by its arguments or its configuration file; else 1."""
    try:
        arguments = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return 1
    if not any("accelerate" in argument for argument in arguments) or "launch" not in arguments:
        return 1
    options = _options(arguments[arguments.index("launch") + 1 :])
    if "num_processes" in options:
        return int(options["num_processes"])
    config = Path(options.get("config_file") or default_config_file)
    return int((yaml.safe_load(config.read_text()) or {}).get("num_processes", 1)) if config.is_file() else 1


def _options(arguments: list[str]) -> dict[str, str]:
    """The launcher's own `--name value` and `--name=value`, up to the script."""
    options = {}
    for name, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if name.endswith(".py"):
            break
        if name.startswith("--"):
            key, separator, attached = name[2:].partition("=")
            options[key.replace("-", "_")] = attached if separator else value
    return options
