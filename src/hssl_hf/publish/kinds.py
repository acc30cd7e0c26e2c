"""The kinds of export, one per branch of a repository on the Hub."""

from typing import Literal, get_args

Kind = Literal["training", "timm", "backbone", "main"]
KINDS: tuple[Kind, ...] = get_args(Kind)  # in the order of a push: the default branch is the last
HELP = {
    "main": "a stock transformers model",
    "timm": "timm's names",
    "backbone": "feature maps for segmentation and detection in transformers",
    "training": "student, teacher and heads",
}


def branch(revision: str, kind: str) -> str:
    """Name of the branch for a kind of export; `revision` is that of the stock model."""
    return revision if kind == "main" else kind if revision == "main" else f"{revision}-{kind}"
