"""The base class of errors that are for users, how they show what came, and how errors about files become such errors."""

import errno
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_MESSAGE, LAST = 1600, 400  # characters of a message, and of its end where the middle is left out
LONGEST_VALUE = 300  # characters of a value in a message
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_SHORT.maxlevel = 3


class UserError(ValueError):
    """Bad input that a user can correct; the message holds what was expected, what came and what to do.

    Of a message that is too long to be read, which repeats much of the input, the middle is left out.
    """

    def __init__(self, message: str):
        left_out = len(message) - LONGEST_MESSAGE
        if left_out > 0:
            start, end = message[: LONGEST_MESSAGE - LAST], message[-LAST:]
            message = f"{start} … ({left_out} characters left out) … {end}"
        super().__init__(message)


class EndedPeerError(UserError):
    """Another process of the run has ended, mostly on an error of its own, which is the one to report."""


def shown(value) -> str:
    """A value for a message, cut where it is long."""
    try:
        text = _SHORT.repr(value)
    except ValueError:  # of an integer that Python refuses to print
        return "a number of thousands of digits"
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def reason(error: BaseException) -> str:
    """What an error of Python or a library reports, with its kind where the text alone means little; paths are left out."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip()
    return text if text and isinstance(error, OSError | ValueError | RuntimeError) else f"{type(error).__name__}: {text}"


@contextmanager
def reading(path: object, advice: str = "", error_class: type[UserError] = UserError) -> Iterator[None]:
    """Convert what Python or a library raises about the content of a user's file into a message that names the file.

    Args:
        path: of the file, or other words that name it.
        advice: what to do; by default to bring the file back or to name another.
        error_class: of the error.
    Raises:
        UserError: of that class, for any error but a UserError, since nothing is known about the content.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        advice = advice or "restore it from a backup, or name another"
        if getattr(error, "errno", None) in FULL:
            advice = "make room on the disk, such as that of the cache (HF_HOME)"
        raise error_class(f"{path} cannot be read: {reason(error)}; {advice}") from error


@contextmanager
def writing(path: object, advice: str = "make room, or write elsewhere, and start again") -> Iterator[None]:
    """Convert what Python or a library raises about a disk into a message that names the file; arguments as of `reading`.

    Raises:
        UserError: for an OSError, and for errors of libraries about input and output.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_about_disk(error):
            raise
        raise UserError(f"{path} cannot be written: {reason(error)}; {advice}") from error


def is_about_disk(error: BaseException) -> bool:
    """Whether an error of Python or a library is about reading or writing a file; libraries in Rust and C++ have their own."""
    texts = ("I/O error", "No space left", "os error", "file write failed", "File too large", "PytorchStreamWriter")
    return isinstance(error, OSError) or any(text in str(error) for text in texts)
