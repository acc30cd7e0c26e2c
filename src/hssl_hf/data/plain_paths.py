"""Paths for `datasets`, which reads * ? [ ] in a path as a pattern, and :: as the way into an archive."""

import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

ODD = re.compile(r"[*?\[\]]|::")


def plain_path(path: str) -> str:
    """The path itself, or, if `datasets` would misread it, that of a link to it which lasts as long as this process."""
    absolute = Path(path).absolute()
    if not ODD.search(str(absolute)):
        return path
    folder = Path(mkdtemp(dir=_folder_of_links().name))
    link = folder / ODD.sub("_", absolute.name)
    link.symlink_to(absolute)
    return str(link)


@cache
def _folder_of_links() -> TemporaryDirectory:
    return TemporaryDirectory(prefix="hssl-hf-links-")
