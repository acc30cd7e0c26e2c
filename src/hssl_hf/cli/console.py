"""How programs end and what they print: exit codes, errors in one line, warnings beside progress bars."""

import functools
import logging
import sys
import traceback
from collections.abc import Callable

import typer

from hssl_hf.errors import UserError

FAILED = 2


class ConsoleHandler(logging.Handler):
    """Writes "level: message" to standard error without breaking a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(f"{record.levelname.lower()}: {record.getMessage()}", file=sys.stderr)


def new_app(**options) -> typer.Typer:
    """An application of plain text, whose errors are left to `run`."""
    width = {"max_content_width": 110}
    return typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, context_settings=width, **options)


def add_command(app: typer.Typer, function: Callable[..., int], name: str | None = None) -> None:
    """Add a function as a command; what it returns is the exit code."""

    @functools.wraps(function)
    def command(*args, **kwargs):
        raise typer.Exit(function(*args, **kwargs))

    app.command(name)(command)


def run(app: typer.Typer, arguments: list[str] | None = None) -> int:
    """Run an application with its messages on the screen and return the exit code.

    Errors for users become one line and exit code 2; with the option `--traceback` their origin is shown.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    logger, handler = logging.getLogger("hssl_hf"), ConsoleHandler()
    logger.addHandler(handler)
    try:
        app(arguments)
    except SystemExit as exit:
        return int(exit.code or 0)
    except UserError as error:
        if "--traceback" in arguments:
            traceback.print_exc()
        else:
            print(f"error: {_message(error)}", file=sys.stderr)
        return FAILED
    finally:
        logger.removeHandler(handler)
    return 0


def _message(error: Exception) -> str:
    """The message of an error, without the traceback of the data loader worker that raised it."""
    return str(error).rpartition(f"{type(error).__name__}: ")[2].strip()
