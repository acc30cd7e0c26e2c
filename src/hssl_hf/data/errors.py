"""The error of data that cannot be read."""

from hssl_hf.errors import UserError


class StreamError(UserError):
    """The data cannot be used as configured; the message holds what was expected, what came and what to do."""
