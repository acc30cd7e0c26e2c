"""A folder belongs to one run, and one process trains in it: the lock of a run, and what has become of the run."""

import contextlib
import json
import os
import platform
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil

from hssl_hf.data.files import read_below, write_below
from hssl_hf.errors import UserError
from hssl_hf.runs.manifest import MANIFEST
from hssl_hf.runs.metric_logger import CURVES, LOG
from hssl_hf.runs.run_directory import ALARMS, RECIPE, RESULTS

LOCK, STATUS = "run.lock", "status.json"
HEARTBEAT, STALE = 20.0, 120.0  # seconds between renewals of a lock, and after which one of another machine counts no longer
CLOCK_ERROR = 5.0  # seconds by which two processes may differ about the start of a third
RESUME = "continue it with resume_from_checkpoint=auto"
STATES = {  # and what a user is to know
    "running": "running",
    "gone": f"no longer running: its process is gone (killed, or its machine stopped); {RESUME}",
    "interrupted": f"interrupted; {RESUME}",
    "failed": "failed",
    "finished": "finished",
}
OF_A_RUN = (RECIPE, LOG, RESULTS, ALARMS, MANIFEST, CURVES, "checkpoints", "figures", "captures", "export")


class RunLockError(UserError):
    """The folder belongs to another process, or to no run; the message holds what to do."""


class RunLock:
    """The claim of this process on the folder of a run; a context that gives it back.

    `run.lock` is there while a process trains in the folder: it names the process, and is renewed by a thread. `status.json`
    stays: {"state": "running", "interrupted", "failed" or "finished", "time", "message"}; it marks the folder as that of a run.

    Args:
        folder: of the run.
        take_over: claim the folder even if another process seems to train in it; that one ends when it notices.
    """

    def __init__(self, folder: Path, take_over: bool = False):
        self.folder, self.take_over, self.interrupted = folder, take_over, False
        self.path, self.owner = folder / LOCK, _this_process()
        self._held, self._begun, self._released = False, False, threading.Event()

    def acquire(self) -> None:
        """Claim the folder, which is created if needed.

        Raises:
            RunLockError: if another process trains in it, or if it holds files of such names that no run has written.
            OSError: if it cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._is_of_a_run() and (foreign := [n for n in OF_A_RUN if (self.folder / n).exists()]):
            raise RunLockError(
                f"expected an empty folder or that of a run, got {self.folder} with {', '.join(foreign)}, which the "
                "run would overwrite and no earlier run wrote; choose another folder with run.output_dir"
            )
        claim = self.folder / f".{LOCK}.{os.getpid()}"
        claim.unlink(missing_ok=True)
        with claim.open("x") as file:  # never through a link
            file.write(json.dumps(self.owner))
        try:
            if not self._link(claim):
                self._refuse_live_owner(claim.stat().st_mtime)
                claim.replace(self.path)
        finally:
            claim.unlink(missing_ok=True)
        self._held = True
        threading.Thread(target=self._renew, daemon=True).start()

    def _is_of_a_run(self) -> bool:
        """Whether a run has written the status, or at least a manifest."""
        known = (_read(self.folder / MANIFEST) or {}).keys() >= {"data", "versions", "processes"}
        return known or str(read_status(self.folder).get("state")) in STATES

    def begin(self) -> None:
        """Mark the folder as that of a run which is under way, once nothing speaks against it."""
        self._begun = True
        self._write_status("running")

    def require(self) -> None:
        """Make sure that the folder is still claimed by this process.

        Raises:
            RunLockError: if another one has taken it over.
        """
        if self._held and (owner := _read_owner(self.path)) != self.owner:
            self._held = False
            by = f"process {owner['process']} on {owner['host']}" if owner else "a user, who has removed its lock"
            raise RunLockError(f"{self.folder} was taken over by {by}, so that this run ends; nothing was written since")

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, kind, error, _traceback) -> None:
        """Give the folder back, with what has become of the run."""
        self._released.set()
        if not self._held or _read_owner(self.path) != self.owner:
            return
        with contextlib.suppress(UserError):  # such as a full disk, of which the run itself has ended
            if not self._begun:
                if read_status(self.folder).get("state") == "running":  # left by a process that is gone, or has given way
                    self._write_status("interrupted")
            elif self.interrupted or (kind is not None and issubclass(kind, SystemExit | KeyboardInterrupt)):
                self._write_status("interrupted")
            else:
                self._write_status("finished" if kind is None else "failed", str(error or ""))
        self.path.unlink(missing_ok=True)

    def _link(self, claim: Path) -> bool:
        """Make the claim the lock in one step, if there is none."""
        try:
            os.link(claim, self.path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            with contextlib.suppress(FileExistsError), self.path.open("x") as file:
                file.write(claim.read_text())
                return True
            return False
        return True

    def _refuse_live_owner(self, now: float) -> None:
        """Raise an error if the process of the lock is alive; `now` is by the clock of the file system."""
        owner, age = _read_owner(self.path), _age(self.path, now)
        if self.take_over or owner == self.owner or not _trains(owner, age):
            return
        raise RunLockError(
            f"process {owner['process']} on {owner['host'].partition(' ')[0]} already trains in {self.folder} (last seen "
            f"{max(0, age):.0f} s ago). Stop it first, or choose another folder with run.output_dir; if it hangs or is gone, "
            "--take-over claims the folder, and that process ends when it notices"
        )

    def _renew(self) -> None:
        while not self._released.wait(HEARTBEAT):
            if _read_owner(self.path) != self.owner:
                return
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def _write_status(self, state: str, message: str = "") -> None:
        status = {"state": state, "time": datetime.now(UTC).isoformat(timespec="seconds"), "message": message}
        write_below(self.folder, STATUS, json.dumps({name: value for name, value in status.items() if value}) + "\n")


def read_status(folder: Path) -> dict:
    """What has become of a run, as in `status.json`; empty if it was never started."""
    return _read(folder / STATUS) or {}


def describe_status(folder: Path) -> str:
    """What has become of a run, in words for its user; empty if it was never started."""
    status = read_status(folder)
    state = str(status.get("state"))
    if state == "running" and not _trains(_read_owner(folder / LOCK), _age(folder / LOCK, time.time())):
        state = "gone"
    if state not in STATES:
        return ""
    since = f" (since {status['time']})" if state == "running" and "time" in status else ""
    message = f": {status['message']}" if state == "failed" and "message" in status else ""
    return f"{STATES[state]}{since}{message}"


def _trains(owner: dict | None, age: float) -> bool:
    """Whether the process of a lock, which was renewed `age` seconds ago, is alive as far as this machine knows."""
    if owner is None:
        return False
    return _is_alive(owner) if owner["host"] == _this_process()["host"] else age < STALE


def _age(lock: Path, now: float) -> float:
    return now - (lock.stat().st_mtime if lock.exists() else 0)


def _this_process() -> dict:
    """Machine (with its namespace of processes, since containers may share a name), process, and when that has started."""
    namespace = Path("/proc/self/ns/pid")
    host = f"{platform.node()} {namespace.readlink() if namespace.exists() else ''}".strip()
    return {"host": host, "process": os.getpid(), "started": psutil.Process().create_time()}


def _is_alive(owner: dict) -> bool:
    try:
        process = psutil.Process(owner["process"])
        same = abs(process.create_time() - owner["started"]) < CLOCK_ERROR
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, TypeError, ValueError):
        return False


def _read_owner(path: Path) -> dict | None:
    """The process of a lock; None if there is none, or one that cannot be read."""
    owner = _read(path)
    kinds = {"host": str, "process": int, "started": float}
    return owner if owner and all(isinstance(owner.get(name), kind) for name, kind in kinds.items()) else None


def _read(path: Path) -> dict | None:
    try:
        value = json.loads(read_below(path.parent, path.name))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
