"""Several processes by Accelerate's launcher: signals are passed on to them, and their exit code is that of the run."""

import logging
import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress

import psutil
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from hssl_hf.engine.launch import LAUNCH_OPTIONS, LaunchError
from hssl_hf.engine.signals import STOPPING
from hssl_hf.errors import reason

PROGRAM = "hssl_hf"  # as in `python -m`; not what else may be a child of this process


def run_launcher(options: list[str], arguments: list[str]) -> int:
    """Run `accelerate launch OPTIONS -m hssl_hf ARGUMENTS` inside this process.

    Signals are passed on to the processes of the run, which end by themselves; the launcher would end them after 30 seconds.

    Returns:
        the exit code of the process that failed first, 0 if none did.
    Raises:
        LaunchError: for options that the launcher refuses.
    """
    parsed = launch_command_parser().parse_args([*options, "-m", PROGRAM, *arguments])
    parsed.signals_to_handle = "SIGQUIT"  # of its agent; the others are handled here
    os.environ[LAUNCH_OPTIONS] = shlex.join(options)
    received: list[int] = []

    def forward(number: int, _frame) -> None:
        received.append(number)
        for child in psutil.Process().children():
            with suppress(psutil.Error):  # it may end at this moment
                if PROGRAM in child.cmdline():
                    child.send_signal(number)

    for number in STOPPING:
        signal.signal(number, forward)
    logging.disable(logging.ERROR)  # the processes themselves report what was wrong
    try:
        launch_command(parsed)
    except ChildFailedError as error:
        return _exit_code([failure.exitcode for failure in error.failures.values()], received)
    except subprocess.CalledProcessError as error:
        return _exit_code([error.returncode], received)
    except Exception as error:  # of the launcher or of YAML, about any options and files
        raise LaunchError(f"accelerate launch refuses {' '.join(options)}: {reason(error)}") from error
    finally:
        logging.disable(logging.NOTSET)
    return 0


def _exit_code(codes: list[int], received: list[int]) -> int:
    """The exit code of a run from those of its processes: an error before an interruption before an end by a signal.

    Args:
        codes: of the processes; negative for one that a signal has killed, the agent's SIGTERM after a failure included.
        received: signals that this process has passed on.
    """
    interruptions = {os.EX_TEMPFAIL, 128 + signal.SIGINT}
    if errors := [code for code in codes if code > 0 and code not in interruptions]:
        return errors[0]
    if killed := [-code for code in codes if code < 0 and -code not in (*received, signal.SIGTERM)]:
        name = signal.Signals(killed[0]).name
        print(
            f"error: a process of the run was killed by {name}, usually because memory ran out; continue with "
            "resume_from_checkpoint=auto", file=sys.stderr,
        )  # fmt: skip
        return 128 + killed[0]
    return 128 + signal.SIGINT if signal.SIGINT in received or 128 + signal.SIGINT in codes else os.EX_TEMPFAIL
