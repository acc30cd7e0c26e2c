"""Checkpoints of a run: atomic, the newest kept, exactly resumed.

A checkpoint is what Accelerate saves (weights, optimizer, random states), the position of every process in the stream, and a
small JSON file with the step, what it depends on, and the size and checksum of every file. It is written under a temporary name
and renamed when it is complete.
"""

import json
import logging
import os
import shutil
import zlib
from pathlib import Path
from pickle import UnpicklingError

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import save_file

from hssl_hf.errors import UserError

logger = logging.getLogger(__name__)
STATE, WEIGHTS = "state.json", "model.safetensors"


class CheckpointError(UserError):
    """A checkpoint could not be written or cannot be resumed; the message holds what to do."""


class CheckpointManager:
    """The checkpoints of one run.

    Args:
        folder: of the checkpoints, one folder `step-00001000` each.
        keep: newest ones to keep, at least 1.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = folder, max(1, keep)

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(path.parent for path in self.folder.glob(f"step-*/{STATE}"))

    def newest(self) -> Path | None:
        """The newest complete checkpoint."""
        return next(reversed(self.all()), None)

    def newest_everywhere(self, accelerator: Accelerator, quarantine: bool) -> Path | None:
        """The newest checkpoint as the main process sees it, in all processes.

        Args:
            quarantine: verify the files, and rename damaged checkpoints.
        """
        find = self.latest_valid if quarantine else self.newest
        return broadcast_object_list([find() if accelerator.is_main_process else None])[0]

    def latest_valid(self) -> Path | None:
        """The newest valid checkpoint; damaged ones are renamed, with a warning."""
        for path in reversed(self.all()):
            if not (damage := _damage(path)):
                return path
            quarantined = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(quarantined, ignore_errors=True)
            path.rename(quarantined)
            logger.warning("the checkpoint %s is damaged (%s); it was moved to %s", path.name, damage, quarantined)
        return None

    def save(self, accelerator: Accelerator, step: int, loader_state: dict, state: dict, unsharded_model=None) -> Path:
        """Write a checkpoint; on failure the earlier ones stay as they are.

        Args:
            accelerator: with the model and the optimizer.
            step: finished steps.
            loader_state: of this process.
            state: what else to write down, the same in all processes.
            unsharded_model: a function that returns the model with unsharded weights, for engines that save it in shards.
        Raises:
            CheckpointError: if the disk is full or the folder cannot be written.
        """
        path = self.folder / f"step-{step:08d}"
        draft = self.folder / f".{path.name}.draft"
        try:
            if accelerator.is_main_process:
                shutil.rmtree(draft, ignore_errors=True)
                draft.mkdir(parents=True)
            accelerator.wait_for_everyone()
            accelerator.save_state(str(draft))
            if unsharded_model is not None and not (draft / WEIGHTS).exists():
                model = unsharded_model()
                if accelerator.is_main_process:
                    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, draft / WEIGHTS)
            torch.save(loader_state, draft / f"loader-{accelerator.process_index}.pt")
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                (draft / STATE).write_text(json.dumps({"step": step, **state, "files": _checksums(draft)}, indent=1))
                _sync(draft)
                shutil.rmtree(path, ignore_errors=True)
                draft.rename(path)
                for old in self.all()[: -self.keep]:
                    shutil.rmtree(old)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(draft, ignore_errors=True)
            newest = self.newest()
            safe = f"The newest complete checkpoint is {newest}." if newest else "There is no earlier checkpoint."
            free = shutil.disk_usage(self.folder).free / 2**20 if self.folder.is_dir() else 0
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.folder} ({free:.0f} MiB free): {error}\n{safe} "
                "Make room, or choose another folder with run.output_dir, and start again with resume_from_checkpoint=auto."
            ) from error
        accelerator.wait_for_everyone()
        return path

    def load(self, accelerator: Accelerator, path: Path) -> tuple[dict, list[dict]]:
        """Restore weights, optimizer and random states; returns the state and the loader states of all processes that saved."""
        state = json.loads((path / STATE).read_text())
        try:
            accelerator.load_state(str(path))
            files = sorted(path.glob("loader-*.pt"), key=lambda file: int(file.stem.removeprefix("loader-")))
            loaders = [torch.load(file, weights_only=True) for file in files]
        except (OSError, RuntimeError, ValueError, EOFError, KeyError, SafetensorError, UnpicklingError) as error:
            raise CheckpointError(
                f"the checkpoint {path} is damaged: {error}\nRemove that folder to resume from the one before it."
            ) from error
        return state, loaders


def _checksums(folder: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file but the state, by relative name."""
    checksums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != STATE:
            checksum = 0
            with path.open("rb") as file:
                while chunk := file.read(2**22):
                    checksum = zlib.crc32(chunk, checksum)
            checksums[path.relative_to(folder).as_posix()] = [path.stat().st_size, checksum]
    return checksums


def _damage(path: Path) -> str:
    """What is wrong with a checkpoint; empty if it is valid."""
    try:
        expected = json.loads((path / STATE).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"{STATE} cannot be read: {error!r}"
    checksums = _checksums(path)
    wrong = [name for name in expected if checksums.get(name) != expected[name]]
    return f"{', '.join(wrong)} missing, cut short or changed" if wrong else ""


def _sync(folder: Path) -> None:
    """Sync every file of a folder to disk before it is renamed."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
