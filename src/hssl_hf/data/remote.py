"""Files on web servers: which URLs a path stands for, and how patient requests are."""

import math
import re

import aiohttp

from hssl_hf.data.errors import StreamError
from hssl_hf.errors import shown

MAX_URLS = 100_000
STALL_SECONDS = 60  # without a byte, after which a web server is tried again; ours: minutes are the libraries' own


def web_options() -> dict:
    """Options of requests to web servers, by protocol, as `datasets` takes them."""
    patience = aiohttp.ClientTimeout(total=None, sock_connect=STALL_SECONDS, sock_read=STALL_SECONDS)
    return {protocol: {"client_kwargs": {"timeout": patience}} for protocol in ("http", "https")}


def expand_braces(url: str) -> list[str]:
    """A URL with a range such as train-{000..127}.tar -> one URL per number, with as many digits.

    Raises:
        StreamError: for ranges of more than `MAX_URLS` numbers together, or of none.
    """
    ranges = re.findall(r"\{(\d+)\.\.(\d+)\}", url)
    count = math.prod(max(0, int(last) - int(first) + 1) for first, last in ranges)
    if not 0 < count <= MAX_URLS:
        raise StreamError(f"data.path={url[:200]!r}: expected at most {MAX_URLS} URLs, got ranges of {shown(count)} numbers")
    head, *numbers_and_tail = re.split(r"\{(\d+)\.\.(\d+)\}", url, maxsplit=1)
    if not numbers_and_tail:
        return [url]
    first, last, tail = numbers_and_tail
    numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return [head + number + rest for number in numbers for rest in expand_braces(tail)]
