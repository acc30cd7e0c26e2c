"""Progress on a terminal and in log files."""

import contextlib
import os
import sys

from tqdm import tqdm

INTERVAL = 10.0  # seconds between lines in a log file


class ProgressBar(tqdm):
    """A progress bar on a terminal; elsewhere a line per interval, of the outermost bar alone.

    Takes tqdm's arguments. The variable TQDM_MININTERVAL sets the interval.

    Attributes:
        broken: whether nothing reads standard error any more.
    """

    def __init__(self, *args, **kwargs):
        self.lines, self.broken = not sys.stderr.isatty(), False
        if self.lines:
            nested = any(not getattr(bar, "disable", True) for bar in tqdm._instances)
            kwargs["disable"] = kwargs.get("disable") or nested
            kwargs["mininterval"] = float(os.environ.get("TQDM_MININTERVAL", INTERVAL))
            kwargs["miniters"] = 1  # tqdm adapts it otherwise, and a thread of it then adds lines
        super().__init__(*args, **kwargs)

    def status_printer(self, file):
        """A function that writes a text: in place, or as a line."""
        if not self.lines:
            return super().status_printer(file)
        return lambda text: text and print(text, file=file, flush=True)

    def display(self, *args, **kwargs) -> bool:
        """Show the state."""
        try:
            return super().display(*args, **kwargs)
        except BrokenPipeError:
            self.broken = True
            return False

    def moveto(self, n: int) -> None:
        """Go to the line of a bar below another."""
        if not self.lines:
            super().moveto(n)

    def clear(self, nolock: bool = False) -> None:
        """Make room for other text, which lines need not."""
        if not self.lines:
            super().clear(nolock)

    def close(self) -> None:
        """Show the last state, unless `leave` is false, and end."""
        if self.lines and not self.disable:
            if self.leave and self.last_print_n < self.n:
                self.refresh()
            self.leave, self.pos = False, 1  # so that tqdm adds nothing
        with contextlib.suppress(BrokenPipeError):
            super().close()

    def __del__(self):
        with contextlib.suppress(AttributeError):  # a signal can interrupt the constructor
            super().__del__()
