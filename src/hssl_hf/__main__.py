"""`hssl-hf COMMAND`, or `python -m hssl_hf COMMAND`.

`accelerate launch -m hssl_hf pretrain ...` is `accelerate launch training/pretrain.py ...` without a checkout.
"""

import sys


def main() -> int:
    """Run the command line; returns its exit code, 130 for Ctrl-C even while it is being imported."""
    try:
        from hssl_hf.cli.main import main

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
