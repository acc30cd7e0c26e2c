"""How programs end and what they print: exit codes, errors in one line, warnings beside progress bars."""

import contextlib
import functools
import logging
import os
import select
import sys
import time
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import typer

from hssl_hf.errors import LONGEST_MESSAGE, EndedPeerError, UserError, is_about_disk, reason, shown

FAILED = 2
PATIENCE = 10  # seconds in which a process that has failed reports why, before those that miss it report that
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


class ConsoleHandler(logging.Handler):
    """Writes "level: message" to standard error without breaking a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        write = tqdm.write if sys.stderr.isatty() else print
        with contextlib.suppress(BrokenPipeError):
            write(f"{record.levelname.lower()}: {record.getMessage()}", file=sys.stderr)


def new_app(*functions: Callable[..., int | None], **options) -> typer.Typer:
    """An application of plain text, with functions as commands; errors are left to `run`."""
    width = {"max_content_width": 110}
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, context_settings=width, **options)
    for function in functions:
        app.command()(_exit_with_result(function))
    return app


def _exit_with_result(function: Callable[..., int | None]) -> Callable:
    """Turn the result of a function into the exit code, 0 for None and where nothing reads the output any more."""

    @functools.wraps(function)
    def command(*args, **kwargs):
        try:
            code = function(*args, **kwargs) or 0
            sys.stdout.flush()
        except BrokenPipeError as error:
            if not _discard_unread_output(sys.stdout):
                raise UserError(f"a connection was closed by its other end: {error}; start again") from error
            code = 0
        raise typer.Exit(code)

    return command


def _discard_unread_output(stream: TextIO) -> bool:
    """Whether a stream is a pipe that nothing reads, as behind `| head`; if so, the rest of it is discarded."""
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)
    except OSError:  # not a file
        return False
    if any(event & select.POLLERR for _, event in poll.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return True
    return False


def run(app: typer.Typer, arguments: list[str] | None = None) -> int:
    """Run an application with its messages on the screen and return the exit code.

    Errors for users, and of the disk, become one line and exit code 2; with the option `--traceback` their origin is shown.
    Neither shows a token.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not sys.stderr.isatty():  # the bars of libraries, which would print a line at every change
        for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")
    logger, handler, output = logging.getLogger("hssl_hf"), ConsoleHandler(), sys.stdout
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        app(arguments)
    except SystemExit as exit:
        code = int(exit.code or 0)
        return 0 if _discard_unread_output(output) and code == 1 else code  # which typer makes of it
    except Exception as error:
        is_expected = isinstance(error, UserError) or is_about_disk(error)
        if "--traceback" in arguments or not is_expected:
            _print_error(traceback.format_exc())
        elif not isinstance(error, UserError):
            name = getattr(error, "filename", None)
            _print_error(
                f"error: {f'{shown(name)} cannot be read or written: ' if name else ''}{reason(error)[:LONGEST_MESSAGE]}"
            )
        elif not _is_reported(error):
            message = str(error).rpartition(f"{type(error).__name__}: ")[2]  # without the traceback of a data loader worker
            _print_error(f"error: {message.strip()}")
        return FAILED if is_expected else 1
    finally:
        logger.removeHandler(handler)
    return 0


def _print_error(text: str) -> None:
    from hssl_hf.publish.secret_scan import redact

    with contextlib.suppress(BrokenPipeError):
        print(redact(text), file=sys.stderr)


def _is_reported(error: UserError) -> bool:
    """Whether another process of the launch has reported the same error, or the one of which this is a consequence.

    The processes of a machine share the folder that torch's launcher makes for their error files, and removes.
    """
    if ERROR_FILE not in os.environ:
        return False
    folder = Path(os.environ[ERROR_FILE]).parents[1]
    if isinstance(error, EndedPeerError):
        time.sleep(PATIENCE)
        if any(folder.glob("reported-*")):
            return True
    try:
        (folder / f"reported-{zlib.crc32(str(error).encode()):08x}").touch(exist_ok=False)
    except FileExistsError:
        return True
    except OSError:
        return False
    return False
