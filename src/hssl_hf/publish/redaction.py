"""What of a path may be published."""

from pathlib import Path
from urllib.parse import urlsplit


def public_path(path: str | None) -> str | None:
    """A Hub id as it is, the last name of a local path, an address without user, password and query."""
    if path is None:
        return None
    if "://" in path:
        address = urlsplit(path)
        return address._replace(netloc=address.netloc.rpartition("@")[2], query="", fragment="").geturl()
    local = path.startswith((".", "/", "~")) or Path(path).expanduser().exists()
    return Path(path).name if local else path


def is_hub_id(path: str | None) -> bool:
    """Whether a public path names a repository of the Hub."""
    return bool(path) and path.count("/") == 1 and "://" not in path
