"""Signals that stop a run: a step or a checkpoint is completed first, anything else is cut short.

A run that a launcher has started also stops when the launcher is gone, which the kernel reports by SIGTERM.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
LAUNCHER_VARIABLES = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")  # one of them is set by every launcher of Accelerate
PR_SET_PDEATHSIG = 1  # prctl(2)


class Interrupted(SystemExit):
    """A signal stops this process now; its code is the exit code."""


class SignalHandler:
    """Receives the signals that stop a run; use it through `stopping_signals`.

    A signal raises `Interrupted`, except within `deferred`, where it is recorded: `number` is that of the first one, or 0.
    """

    def __init__(self):
        self.number, self._raises = 0, True

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, as in a shell; else 75 (EX_TEMPFAIL), after which a scheduler requeues the job."""
        return 128 + signal.SIGINT if self.number == signal.SIGINT else os.EX_TEMPFAIL

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Record signals, so that what is at work can be completed."""
        before, self._raises = self._raises, False
        try:
            yield
        finally:
            self._raises = before

    def run_until_signal(self, work: Callable[[], object]) -> None:
        """Call a function within `deferred`; a signal ends it at once, an earlier one skips it."""
        try:
            self._raises = True
            if not self.number:
                work()
        except Interrupted:
            pass
        finally:
            self._raises = False

    def receive(self, number: int, _frame=None) -> None:
        """Handle a signal; further ones change nothing, since a launcher may repeat what the terminal has sent."""
        self.number = self.number or number
        if self._raises:
            self._raises = False
            raise Interrupted(self.exit_code)


@contextlib.contextmanager
def inherited_blocked() -> Iterator[None]:
    """Block the signals for processes that are started meanwhile, until they have arranged themselves."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


_active: SignalHandler | None = None


@contextlib.contextmanager
def stopping_signals() -> Iterator[SignalHandler]:
    """Handle the signals of `STOPPING`, with one handler for all nested uses; threads other than the main one get none."""
    global _active
    if _active is not None:
        yield _active
        return
    handler, previous = SignalHandler(), {}
    if threading.current_thread() is threading.main_thread():
        nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        taken = [number for number in STOPPING if not (nohup and number == signal.SIGHUP)]
        previous = {number: signal.signal(number, handler.receive) for number in taken}
        _stop_with_launcher()
    _active = handler
    try:
        yield handler
    finally:
        _active = None
        for number, action in previous.items():
            signal.signal(number, action)


def _stop_with_launcher() -> None:
    """Get SIGTERM when the parent ends, if that is a launcher, which may end without stopping what it has started."""
    if sys.platform == "linux" and any(name in os.environ for name in LAUNCHER_VARIABLES):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
