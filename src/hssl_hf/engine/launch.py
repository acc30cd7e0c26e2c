"""The processes of a run: as many as requested, and in one group?"""

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
    """The processes are not those that were requested; the message holds the command that works."""


def check_launch(accelerator: Accelerator, script: str) -> None:
    """Compare the requested processes with those that run and reach each other.

    A launcher may quietly start one process only, or several that each believe to be alone.

    Raises:
        LaunchError: if fewer processes run than requested, or if they do not form one group.
    """
    requested = max(int(os.environ.get("WORLD_SIZE", 1)), _requested_from_launcher())
    connected = 1
    if dist.is_initialized():
        ones = torch.ones(1, device=accelerator.device)
        dist.all_reduce(ones)
        connected = int(ones.item())
    if requested == accelerator.num_processes == connected and (requested == 1 or accelerator.distributed_type != "NO"):
        return
    works = COMMAND.format(n=requested, script=script, config="multi_gpu" if torch.cuda.is_available() else "cpu")
    raise LaunchError(
        f"{requested} processes were requested, but this one sees {accelerator.num_processes} and {connected} respond "
        f"(mode {accelerator.distributed_type}). Start them with\n    {works}"
    )


def _requested_from_launcher() -> int:
    """Processes that the parent `accelerate launch` was given, by its arguments or its configuration file; else 1."""
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
