"""The state of a linear probe that takes days, kept after every epoch, so that an interruption loses one at most."""

import logging
import pickle
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from hssl_hf.errors import UserError, reason, writing

logger = logging.getLogger(__name__)


class ProbeState:
    """A file per process, replaced in one step. What cannot be written is not kept, with a warning.

    Args:
        folder: of the files, removed at the end; None to keep nothing.
        accelerator: of the processes, all of which have to call the methods.
    """

    def __init__(self, folder: Path | None, accelerator: Accelerator):
        self.accelerator = accelerator
        name = f"process-{accelerator.process_index}-of-{accelerator.num_processes}.pt"
        self.path = None if folder is None else folder / name

    def load(self) -> dict:
        """The state after the last epoch that all processes have finished; empty if there is none."""
        state = self._read()
        epochs = set(gather_object([state.get("epoch", 0)]))
        if len(epochs) > 1 and self.accelerator.is_main_process:
            logger.warning("the states of the processes are of different epochs (%s); the probe starts again", sorted(epochs))
        return state if len(epochs) == 1 else {}

    def save(self, state: dict) -> None:
        """Replace the state, which holds the number of finished epochs as "epoch"."""
        if self.path is None:
            return
        draft = self.path.with_suffix(".partial")
        try:
            with writing(self.path.parent):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                torch.save(state, draft)
                draft.replace(self.path)
        except UserError as error:
            logger.warning("the state of the probe is not kept (%s); an interruption would lose it", error)
            self.path = None

    def remove(self) -> None:
        """Remove the state of a finished probe."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            if self.path.parent.is_dir() and not any(self.path.parent.iterdir()):
                self.path.parent.rmdir()

    def _read(self) -> dict:
        if self.path is None or not self.path.is_file():
            return {}
        try:
            return torch.load(self.path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            logger.warning("the state of the probe in %s is damaged (%s); it starts again", self.path, reason(error))
            return {}
