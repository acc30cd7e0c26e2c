"""Checkpoints of a run: written whole or not at all, newest kept, resumed exactly.

A checkpoint is what accelerate saves (weights, optimizer, random states) plus the stream's position of every process and a
small JSON with the step and what it depends on. It is written beside its place and renamed into it when complete.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

STATE = "state.json"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or cannot be resumed; the message says what to do."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie, one folder `step-00001000` each.
        keep: newest ones to keep, at least 1.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = folder, max(1, keep)

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(path.parent for path in self.folder.glob(f"step-*/{STATE}"))

    def save(self, accelerator: Accelerator, step: int, loader_state: dict, state: dict) -> Path:
        """Write a checkpoint; on failure the earlier ones stay as they are.

        Raises:
            CheckpointError: if the disk is full or the folder cannot be written.
        """
        place = self.folder / f"step-{step:08d}"
        draft = self.folder / f".{place.name}.draft"
        try:
            if accelerator.is_main_process:
                shutil.rmtree(draft, ignore_errors=True)
                draft.mkdir(parents=True)
            accelerator.wait_for_everyone()
            accelerator.save_state(str(draft))
            torch.save(loader_state, draft / f"loader-{accelerator.process_index}.pt")
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                (draft / STATE).write_text(json.dumps({"step": step, **state}, indent=1))
                _sync(draft)
                shutil.rmtree(place, ignore_errors=True)
                draft.rename(place)
                self._prune()
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise CheckpointError(self._failure(step, error)) from error
        accelerator.wait_for_everyone()
        return place

    def load(self, accelerator: Accelerator, path: Path) -> tuple[dict, dict]:
        """Restore weights, optimizer and random states; returns the state and this process's loader state."""
        state = json.loads((path / STATE).read_text())
        try:
            accelerator.load_state(str(path))
            loader = torch.load(path / f"loader-{accelerator.process_index}.pt", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError, KeyError, SafetensorError) as error:
            raise CheckpointError(
                f"the checkpoint {path} is damaged: {error}\nRemove that folder to resume from the one before it."
            ) from error
        return state, loader

    def _prune(self) -> None:
        for old in self.all()[: -self.keep]:
            shutil.rmtree(old)

    def _failure(self, step: int, error: Exception) -> str:
        kept = self.all()
        free = shutil.disk_usage(self.folder).free / 2**20 if self.folder.is_dir() else 0
        safe = f"The newest complete checkpoint is {kept[-1]}." if kept else "There is no earlier checkpoint."
        return (
            f"the checkpoint of step {step} could not be written to {self.folder} ({free:.0f} MiB free): {error}\n{safe} "
            "Make room, or choose another folder with run.output_dir, and start again with resume=auto."
        )


def _sync(folder: Path) -> None:
    """Wait until every file of a folder is on the disk, so that the rename cannot overtake it."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
