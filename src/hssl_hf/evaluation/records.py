"""Records: measured values with what is needed to reproduce them."""

import subprocess
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from hssl_hf.data.files import append_line, read_lines
from hssl_hf.fields import check

UNTRAINED, PIXELS = "untrained backbone", "raw pixels"  # subjects that stand beside a pre-trained backbone


def current_command() -> str:
    """The command line of this program, without the folder of the program."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def current_commit() -> str:
    """Commit of the checkout of this code, or "" outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


@dataclass(frozen=True)
class Record:
    """One measured value.

    Args:
        metric, value, unit: what, how much, in what ("percent").
        subject: what was measured (an export, "raw pixels", ...).
        dataset, revision, split, n: on what, and on how many images.
        settings: of the protocol.
        seed: of the training or evaluation.
        interval: bounds of 95 % of the values on resampled test images; None where there are none.
        command, commit, date: how, with which code (empty outside a checkout), when.
    """

    metric: str
    value: float
    unit: str
    subject: str
    dataset: str
    revision: str | None
    split: str
    n: int
    settings: dict
    seed: int
    interval: tuple[float, float] | None = None
    command: str = field(default_factory=current_command)
    commit: str = field(default_factory=current_commit)
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def append_to(self, path: Path | str) -> None:
        """Add the record to a file of JSON lines; raises a UserError if it cannot be written."""
        append_line(path, asdict(self))


KINDS = {"metric": str, "value": float, "unit": str, "subject": str, "dataset": str, "revision": str | None, "split": str}
KINDS |= {"n": int, "settings": dict, "seed": int, "date": str}
KINDS |= {"interval": tuple[float, float] | None}


def read_records(path: Path | str) -> list[dict]:
    """Records of a file as dictionaries; none if there is no such file. Damaged ones are skipped, with a warning.

    Raises:
        UserError: if the file cannot be read.
    """
    return read_lines(path, _check_record)


def _check_record(line: dict) -> None:
    """Raise a ValueError for an object that is no record, or one whose value is no finite number."""
    for name, kind in KINDS.items():
        check(kind, line.get(name), name)
    if (interval := line.get("interval")) is not None and not interval[0] <= line["value"] <= interval[1]:
        raise ValueError(f"interval: expected one around {line['value']}, got {interval}")
