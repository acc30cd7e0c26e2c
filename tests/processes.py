"""Processes of their own without the seconds of an import: forked from a server that has imported the libraries once.

The server holds no module of this package, so a process that must not import the package can be forked from it too.
"""

import multiprocessing
import os
import resource
import runpy
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch.multiprocessing

LIBRARIES = ["pytest", "hypothesis", "torch", "torchvision", "timm", "accelerate", "datasets", "torchdata.stateful_dataloader"]
LIBRARIES += ["transformers.pipelines", "transformers.models.vit.modeling_vit", "transformers.models.auto.modeling_auto"]
LIBRARIES += ["transformers.models.bit.image_processing_bit", "matplotlib.pyplot", "cv2", "aiohttp", "onnxruntime"]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(LIBRARIES)


def free_port() -> int:
    """A port of this machine that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_pair(function: Callable, *arguments) -> dict:
    """The results of `function(rank, port, *arguments, results)` in two processes, which put them into the last argument."""
    with CONTEXT.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.start_processes(
            function, args=(free_port(), *arguments, results), nprocs=2, start_method="forkserver"
        )
        return dict(results.items())


def _run(arguments: list[str], environment: dict[str, str], output: str, errors, max_file_size: int | None) -> None:
    os.setpgid(0, 0)
    os.environ.clear()
    os.environ.update(environment)
    with Path(output).open("w") as file:
        os.dup2(file.fileno(), 1)
    os.dup2(errors.fileno(), 2)
    errors.close()
    multiprocessing.set_start_method(None, force=True)  # the default, as in any program
    if max_file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_size, max_file_size))
    os.sched_getaffinity = lambda _: {0}  # the models of tests are too small to gain from threads, which wait for each other
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(arguments[1], {"__name__": "__main__"})
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


class Program:
    """A Python program in a forked process and a process group of its own, with the methods of `subprocess.Popen` in use.

    Args:
        arguments: path of the program or `-c` and its code, and what follows on its command line.
        environment: of the program; what libraries read of it when they are imported is that of the server.
        max_file_size: bytes that the program may write into one file.
    """

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None, max_file_size: int | None = None):
        reader, writer = CONTEXT.Pipe(duplex=False)
        self.stderr = os.fdopen(os.dup(reader.fileno()), "r", errors="replace")
        reader.close()
        self._output = Path(tempfile.mkstemp()[1])
        values = (list(map(str, arguments)), dict(environment or os.environ), str(self._output), writer, max_file_size)
        self._process = CONTEXT.Process(target=_run, args=values)
        self._process.start()
        writer.close()
        self.pid, self.kill = self._process.pid, self._process.kill

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    poll = returncode.fget

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def join(self) -> None:
        """Wait for the end without reading what it writes."""
        self._process.join()

    def communicate(self) -> tuple[str, str]:
        """Wait for the end; returns standard output and the rest of standard error."""
        errors = self.stderr.read()
        self.stderr.close()
        self._process.join()
        output = self._output.read_text()
        self._output.unlink()
        return output, errors


def wait_until(process, reached: Callable[[], bool]) -> None:
    """Return as soon as `reached` is true, looked at every hundredth of a second; fails if the process ends before."""
    ended = os.pidfd_open(process.pid)
    try:
        while not reached():
            assert not select.select([ended], [], [], 0.01)[0] or reached(), f"ended early with code {process.poll()}"
    finally:
        os.close(ended)


def run_code(command: list[str], **_) -> subprocess.CompletedProcess:
    """`subprocess.run` of `[sys.executable, "-c", code, ...]`, captured as text, in a forked process."""
    program = Program(*command[1:])
    output, errors = program.communicate()
    return subprocess.CompletedProcess(command, program.returncode, output, errors)
