"""Paths without private parts, for publication."""

from pathlib import Path
from urllib.parse import urlsplit


def public_path(path: str | None) -> str | None:
    """A Hub id unchanged, the last component of a local path, or a URL without user, password and query."""
    if path is None:
        return None
    if "://" in path:
        url = urlsplit(path)
        return url._replace(netloc=url.netloc.rpartition("@")[2], query="", fragment="").geturl()
    local = path.startswith((".", "/", "~")) or Path(path).expanduser().exists()
    return Path(path).name if local else path


def is_hub_id(path: str | None) -> bool:
    """Whether a public path is the id of a repository on the Hub."""
    return bool(path) and path.count("/") == 1 and "://" not in path
