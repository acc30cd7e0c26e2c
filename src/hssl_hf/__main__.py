"""`python -m hssl_hf COMMAND`: the command line whose `pretrain` and `search` train in this process.

`accelerate launch -m hssl_hf pretrain ...` is `accelerate launch training/pretrain.py ...` without a checkout.
"""

import sys

from hssl_hf.cli.commands import COMMANDS
from hssl_hf.cli.main import main
from hssl_hf.cli.programs import pretrain, search

if __name__ == "__main__":
    sys.exit(main(commands=COMMANDS | {"pretrain": pretrain, "search": search}))
