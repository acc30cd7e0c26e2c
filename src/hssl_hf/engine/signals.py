"""Signals that stop a run."""

import os
import signal


class SignalHandler:
    """Records SIGTERM, SIGUSR1 and Ctrl-C, so that a step can end before the program does."""

    def __init__(self):
        self.number = 0
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._remember)

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, as in a shell; else 75 (EX_TEMPFAIL), after which a scheduler requeues the job."""
        return 128 + signal.SIGINT if self.number == signal.SIGINT else os.EX_TEMPFAIL

    def _remember(self, number: int, _frame) -> None:
        self.number = number
