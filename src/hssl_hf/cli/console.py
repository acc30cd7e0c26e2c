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


def new_app(*functions: Callable[..., int | None], **options) -> typer.Typer:
    """An application of plain text, with functions as commands; errors are left to `run`."""
    width = {"max_content_width": 110}
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, context_settings=width, **options)
    for function in functions:
        app.command()(_exit_with_result(function))
    return app


def _exit_with_result(function: Callable[..., int | None]) -> Callable:
    """Turn the result of a function into the exit code, 0 for None."""

    @functools.wraps(function)
    def command(*args, **kwargs):
        raise typer.Exit(function(*args, **kwargs) or 0)

    return command


def run(app: typer.Typer, arguments: list[str] | None = None) -> int:
    """Run an application with its messages on the screen and return the exit code.

    Errors for users become one line and exit code 2; with the option `--traceback` their origin is shown.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    logger, handler = logging.getLogger("hssl_hf"), ConsoleHandler()
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        app(arguments)
    except SystemExit as exit:
        return int(exit.code or 0)
    except UserError as error:
        if "--traceback" in arguments:
            traceback.print_exc()
        else:
            message = str(error).rpartition(f"{type(error).__name__}: ")[2]  # without the traceback of a data loader worker
            print(f"error: {message.strip()}", file=sys.stderr)
        return FAILED
    finally:
        logger.removeHandler(handler)
    return 0
