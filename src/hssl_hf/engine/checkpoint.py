"""Checkpoints of a run: atomic, the newest kept, exactly resumed.

A checkpoint is two files of full tensors, weights and optimizer, which every engine and any number of processes can resume; of
every process its random states and its position in the stream; and a small JSON file with the step, what it depends on, and the
size and checksum of every file. It is written under a temporary name and renamed when it is complete.
"""

import json
import logging
import os
import re
import shutil
import zlib
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hssl_hf.engine import full_state
from hssl_hf.engine.distributed import Engine
from hssl_hf.errors import UserError

logger = logging.getLogger(__name__)
STATE, WEIGHTS, OPTIMIZER = "state.json", "model.safetensors", "optimizer.safetensors"
CHECKSUM = "checksum"  # in the state, of its other values


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
        """Complete checkpoints, oldest first: folders whose state is of the step that their name holds."""
        return [path for path in self._candidates() if _state(path).get("step") == _step(path)]

    def exist(self) -> bool:
        """Whether there are any, damaged ones included."""
        return bool(self._candidates() or self._quarantined())

    def newest(self) -> Path | None:
        """The newest complete checkpoint; its files are not read."""
        return next(reversed(self.all()), None)

    def latest_valid(self, quarantine: bool = False) -> Path | None:
        """The newest checkpoint whose files are what was written.

        Args:
            quarantine: rename damaged ones that are newer.
        Returns:
            its folder; None if there are no checkpoints, damaged or not.
        Raises:
            CheckpointError: if all are damaged.
        """
        damaged: dict[Path, str] = {}
        for path in reversed(self._candidates()):
            if damage := _damage(path):
                damaged[path] = damage
                continue
            for other, text in damaged.items():
                _report_damaged(other, text, quarantine)
            return path
        damaged |= {path: "damaged before" for path in self._quarantined()}
        if damaged:
            names = "\n  ".join(f"{path.name}: {damage}" for path, damage in sorted(damaged.items())[:10])
            raise CheckpointError(
                f"expected a valid checkpoint in {self.folder}, but all of its {len(damaged)} are damaged:\n  {names}\nRestore "
                "one from a backup, or start a new run with another run.output_dir; to start at step 0 here, remove them"
            )
        return None

    @staticmethod
    def require_valid(path: Path) -> None:
        """Raise a CheckpointError if the files of a checkpoint are not what was written."""
        if damage := _damage(path):
            raise CheckpointError(f"the checkpoint {path} is damaged: {damage}; choose another one of the run")

    def _candidates(self) -> list[Path]:
        """Folders that are named as checkpoints are and hold a state, in the order of their steps."""
        folders = (path.parent for path in self.folder.glob(f"step-*/{STATE}"))
        return sorted((folder for folder in folders if _step(folder) is not None), key=_step)

    def _quarantined(self) -> list[Path]:
        return list(self.folder.glob("damaged-step-*"))

    def save(self, engine: Engine, step: int, loader_state: dict, state: dict) -> Path:
        """Write a checkpoint; on failure the earlier ones stay as they are. To be called by all processes.

        Args:
            engine: with the model and the optimizer.
            step: finished steps.
            loader_state: of this process.
            state: what else to write down, the same in all processes.
        Raises:
            CheckpointError: if the disk is full or the folder cannot be written.
        """
        path, accelerator = self.folder / f"step-{step:08d}", engine.accelerator
        draft = self.folder / f".{path.name}.draft"
        try:
            if accelerator.is_main_process:
                shutil.rmtree(draft, ignore_errors=True)
                draft.mkdir(parents=True)
            accelerator.wait_for_everyone()
            for name, tensors in ((WEIGHTS, full_state.full_weights(engine)), (OPTIMIZER, full_state.optimizer_state(engine))):
                if accelerator.is_main_process:
                    save_file({key: value.contiguous() for key, value in tensors.items()}, draft / name)
            own = {"loader": loader_state, "random": full_state.random_states(accelerator.device)}
            torch.save(own, draft / _process_file(accelerator.process_index))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                write_state(draft, step, processes=accelerator.num_processes, **state)
                _sync(draft)
                shutil.rmtree(path, ignore_errors=True)
                draft.rename(path)
                for old in [other for other in self.all() if _step(other) <= step][: -self.keep]:
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

    def load(self, engine: Engine, path: Path) -> tuple[dict, list[dict]]:
        """Restore weights, optimizer and random states, whatever engine has saved them. To be called by all processes.

        Returns:
            the state, and the loader states of all processes that have saved.
        Raises:
            CheckpointError: for a damaged checkpoint, or one of another model.
        """
        try:
            state = json.loads((path / STATE).read_text())
            full_state.load_weights(engine, load_file(path / WEIGHTS))
            full_state.load_optimizer_state(engine, load_file(path / OPTIMIZER))
            files = [path / _process_file(index) for index in range(state["processes"])]
            processes = [torch.load(file, weights_only=True) for file in files]
            if (own := engine.accelerator.process_index) < len(processes):
                full_state.restore_random_states(processes[own]["random"], engine.accelerator.device)
            return state, [process["loader"] for process in processes]
        except (OSError, RuntimeError, ValueError, EOFError, KeyError, SafetensorError, UnpicklingError) as error:
            raise CheckpointError(
                f"the checkpoint {path} is damaged: {error}\nRemove that folder to resume from the one before it."
            ) from error


def _process_file(index: int) -> str:
    return f"process-{index}.pt"


def write_state(folder: Path, step: int, **state) -> None:
    """Write down the step of a checkpoint, further state, the checksums of its files, which are complete, and that of these."""
    values = {"step": step, **state, "files": _checksums(folder)}
    (folder / STATE).write_text(json.dumps({**values, CHECKSUM: _checksum_of(values)}, indent=1))


def _checksum_of(values: dict) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


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


def _step(path: Path) -> int | None:
    """The step in the name of a checkpoint's folder; None if it is named otherwise."""
    name = re.fullmatch(r"step-(\d{8,})", path.name)
    return int(name[1]) if name else None


def _state(path: Path) -> dict:
    """The state of a checkpoint; empty if it cannot be read, or is not as it was written."""
    try:
        state = json.loads((path / STATE).read_text())
        return state if state.pop(CHECKSUM, None) == _checksum_of(state) else {}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _damage(path: Path) -> str:
    """What is wrong with a checkpoint; empty if it is valid."""
    state, checksums = _state(path), _checksums(path)
    expected = state.get("files")
    if expected is None:
        return f"{STATE} cannot be read, or was changed"
    if state["step"] != _step(path):
        return f"its state is that of step {state['step']}"
    wrong = [name for name in {WEIGHTS: None, **expected} if name not in checksums or checksums[name] != expected.get(name)]
    return f"{', '.join(wrong)} missing, cut short or changed" if wrong else ""


def _report_damaged(path: Path, damage: str, quarantine: bool) -> None:
    if not quarantine:
        logger.warning("the checkpoint %s is damaged (%s); an earlier one is used", path.name, damage)
        return
    quarantined = path.with_name(f"damaged-{path.name}")
    shutil.rmtree(quarantined, ignore_errors=True)
    path.rename(quarantined)
    logger.warning("the checkpoint %s is damaged (%s); it was moved to %s", path.name, damage, quarantined)


def _sync(folder: Path) -> None:
    """Sync every file of a folder to disk before it is renamed."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
