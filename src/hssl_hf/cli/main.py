"""The command line: `hssl-hf COMMAND`."""

import sys
from typing import Annotated

import typer

from hssl_hf.cli.commands import COMMANDS
from hssl_hf.cli.console import new_app, run

HELP = """Heterogeneous self-supervised learning and siamese image modeling: pre-train, evaluate, publish.

Exit codes: 0 done, 2 an error that the message explains, 75 interrupted (requeue the job), 130 Ctrl-C. Training
that is interrupted writes a checkpoint first.
"""
EXAMPLES = """Examples:

\b
  hssl-hf pretrain                                       the quick start: real images, a few minutes on two cores
  hssl-hf pretrain RECIPE data.path=user/images          a recipe of `hssl-hf recipes` or a file, with a value replaced
  hssl-hf report runs/quickstart                         one HTML page about the run
  hssl-hf push runs/quickstart user/name --private       publish: stock model, timm model, full model
"""


def options(traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error comes from.")] = False) -> None:
    """Options of all commands; `--traceback` is read by `run`."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    app = new_app(*COMMANDS.values(), no_args_is_help=True)
    app.callback(help=HELP, epilog=EXAMPLES)(options)
    return run(app, arguments)


if __name__ == "__main__":
    sys.exit(main())
