"""The command line: `hssl-hf COMMAND`."""

import sys
from typing import Annotated

import typer

from hssl_hf.cli.commands import COMMANDS
from hssl_hf.cli.console import new_app, run

app = new_app(*COMMANDS.values(), no_args_is_help=True)


@app.callback(
    help="""Heterogeneous self-supervised learning and siamese image modeling: pre-train, evaluate, publish.

    Exit codes: 0 done, 2 an error that the message explains, 75 interrupted with a checkpoint (requeue the job), 130 Ctrl-C.
    """,
    epilog="""Examples:

\b
  hssl-hf pretrain                                       the quick start: real images, a few minutes on two cores
  hssl-hf pretrain recipe.yaml data.path=user/images     a recipe, with a value replaced
  hssl-hf report runs/quickstart                         one HTML page about the run
  hssl-hf push runs/quickstart user/name --private       publish: stock model, timm model, full model
""",
)
def options(traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error comes from.")] = False) -> None:
    """Options of all commands; `--traceback` is read by `run`."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    return run(app, arguments)


if __name__ == "__main__":
    sys.exit(main())
