"""Bad input and faults, by kind: `python -m tests.faults` makes the table kind, tried, ended well.

A test of this sort carries `@pytest.mark.fault("kind")` and checks its end with `refused` or `ends_well`.
"""

import contextlib
import sys
from collections import Counter, defaultdict
from subprocess import CompletedProcess

import pytest

from hssl_hf.errors import UserError

WELL, ENDS = "ended well", ("ended well", "poor message", "traceback", "silent", "other")
LONGEST_MESSAGE = 2000


class EndedBadlyError(AssertionError):
    """Bad input did not end in a message that helps; `how` is one of `ENDS`."""

    def __init__(self, how: str, text: str):
        super().__init__(f"{how}: {text}")
        self.how = how


@contextlib.contextmanager
def refused(*words: str):
    """The block raises a `UserError` whose message holds all words and is short enough to be read."""
    try:
        yield
    except UserError as error:
        _check_message(str(error), words)
    except Exception as error:
        raise EndedBadlyError("traceback", f"{type(error).__name__}: {error}") from error
    else:
        raise EndedBadlyError("silent", f"expected an error with {words}")


def ends_well(done: CompletedProcess, *words: str, code: int = 2) -> None:
    """A program ended with this exit code, without a traceback, and its standard error holds all words."""
    if "Traceback" in done.stderr:
        raise EndedBadlyError("traceback", done.stderr)
    if done.returncode != code:
        raise EndedBadlyError("silent" if done.returncode == 0 else "other", f"exit code {done.returncode}: {done.stderr}")
    _check_message(done.stderr, words)


def _check_message(message: str, words: tuple[str, ...]) -> None:
    missing = [word for word in words if word.lower() not in message.lower()]
    if missing or len(message) > LONGEST_MESSAGE:
        raise EndedBadlyError("poor message", f"lacks {missing}, {len(message)} characters: {message}")


class _Counts:
    """Counts how the tests of each kind ended; a skipped one is not counted."""

    def __init__(self):
        self.kinds = defaultdict(Counter)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        marker = item.get_closest_marker("fault")
        if marker and (call.when == "call" or report.failed) and not report.skipped:
            how = getattr(call.excinfo.value, "how", "other") if report.failed else WELL
            self.kinds[marker.args[0]][how] += 1
        return report


def main() -> int:
    """Run all tests marked `fault`, slow ones too, with further arguments of pytest, and print the table."""
    counts = _Counts()
    code = pytest.main(["-m", "fault", *sys.argv[1:]], plugins=[counts])
    rows = [(kind, sum(ends.values()), *(ends[how] for how in ENDS)) for kind, ends in sorted(counts.kinds.items())]
    rows.append(("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])))
    print("| kind | tried | " + " | ".join(ENDS) + " |", "|---" * (2 + len(ENDS)) + "|", sep="\n")
    print(*("| " + " | ".join(map(str, row)) + " |" for row in rows), sep="\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
