"""Which files of a folder belong to which split, by the names of its folders and shards."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hssl_hf.data.errors import StreamError

EVERYTHING = "all"
KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLITS = {keyword: split for split, keywords in KEYWORDS.items() for keyword in keywords}
_NAME = re.compile(rf"({'|'.join(sorted(_SPLITS, key=len, reverse=True))})([-_.].*)?")
_NUMBERS = re.compile(r"[-_.]?\d+([-_.]\d+)*([-_.]of[-_.]\d+)?$")


def split_name(name: str) -> str | None:
    """The split that a folder or shard is named after, None if it is none.

    Numbers at the end are no part of it: train2017 and train-00001-of-00128 are train, val is validation, train_semi is
    train-semi; "test tube", "trains" and "my-train" are no splits.
    """
    match = _NAME.fullmatch(_NUMBERS.sub("", name.lower()))
    return match and _SPLITS[match[1]] + (match[2] or "").replace("_", "-")


@dataclass(frozen=True)
class Selection:
    """Result of `select_split`.

    Args:
        indices: of the selected paths.
        reading: how the names were read, for a message; empty where there was nothing to decide.
        depth: number of folders above those that can be classes.
    """

    indices: list[int]
    reading: str
    depth: int


def select_split(paths: Sequence[tuple[str, ...]], split: str | None, where: str) -> Selection:
    """Select the paths of a split.

    The folder has splits if all names at its top are names of splits; folders around a single one do not count. Otherwise its
    folders are classes, whatever their names, unless a split is requested: then the outermost name of a split decides.

    Args:
        paths: names from the top of the folder down to what belongs together, a folder with images or a shard; () for images
            at the top itself.
        split: name of a split; "all" for everything; None for train where the folder has splits, else for everything.
        where: name of the folder for messages.
    Raises:
        StreamError: if the folder has no such split.
    """
    depth = _depth_of_first_choice(paths)
    tops = {path[depth] if len(path) > depth else "" for path in paths}
    has_splits = all(map(split_name, tops))
    decisive = [next((name for name in path[depth:] if split_name(name)), None) for path in paths]
    available = sorted({name for name in decisive if name})
    above_classes = depth + 1 if has_splits else 0
    if split == EVERYTHING or (not has_splits and (split is None or (split == "train" and not available))):
        mixed = f"folders named like splits ({_some(available)}) are read as folders of one dataset" if available else ""
        return Selection(list(range(len(paths))), mixed and f"{mixed}; data.split=... reads one split alone", above_classes)
    chosen = "train" if split is None else split
    known = split_name(chosen)
    exact = [i for i, name in enumerate(decisive) if name == chosen != known]  # train2014 beside train2017
    indices = exact or [i for i, name in enumerate(decisive) if name and split_name(name) == known]
    if not indices:
        raise StreamError(
            f"{where!r} has no split {chosen!r}; it has {_some(available) or 'no splits'}. Name one with data.split=..., or "
            f"read all images with data.split={EVERYTHING}"
        )
    reading = f"split {chosen!r} of {_some(available)}; data.split={EVERYTHING} reads all images"
    return Selection(indices, reading, above_classes)


def _depth_of_first_choice(paths: Sequence[tuple[str, ...]]) -> int:
    """Number of folders around everything, down to the first that is named after a split."""
    depth, shortest = 0, min(map(len, paths), default=0)
    while depth < shortest and not split_name(paths[0][depth]) and len({path[depth] for path in paths}) == 1:
        depth += 1
    return depth


def _some(names: Sequence[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} others" if len(names) > limit else "")
