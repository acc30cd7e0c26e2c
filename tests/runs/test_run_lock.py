import json
import os

import pytest

from hssl_hf.runs import run_lock
from hssl_hf.runs.manifest import MANIFEST
from hssl_hf.runs.metric_logger import LOG
from hssl_hf.runs.run_lock import LOCK, OF_A_RUN, STALE, STATUS, RunLock, RunLockError, describe_status, read_status
from tests.faults import refused

HERE = run_lock._this_process()
ALIVE = {**HERE, "process": os.getppid(), "started": run_lock.psutil.Process(os.getppid()).create_time()}
GONE = {**HERE, "process": 2**22 + 1}
REUSED = {**ALIVE, "started": ALIVE["started"] - 3600}  # another process has the number now
ELSEWHERE = {**ALIVE, "host": "other-node pid:[1]"}


def locked_by(folder, owner: dict, age: float = 0.0):
    """The folder of a run with the lock of a process, renewed so many seconds ago."""
    (folder / STATUS).write_text('{"state": "running"}')
    lock = folder / LOCK
    lock.write_text(json.dumps(owner))
    os.utime(lock, (lock.stat().st_mtime - age,) * 2)
    return folder


@pytest.mark.fault("two runs in a folder")
@pytest.mark.parametrize(("owner", "age"), [(ALIVE, 0), (ALIVE, 10 * STALE), (ELSEWHERE, 0), (ELSEWHERE, 0.9 * STALE)])
def test_a_folder_in_which_another_process_trains_is_refused(tmp_path, owner, age):
    locked_by(tmp_path, owner, age)
    with refused(str(owner["process"]), str(tmp_path), "run.output_dir", "--take-over"), RunLock(tmp_path) as lock:
        lock.acquire()
    assert json.loads((tmp_path / LOCK).read_text()) == owner and read_status(tmp_path)["state"] == "running"


@pytest.mark.parametrize(("owner", "age"), [(GONE, 0), (REUSED, 0), (ELSEWHERE, 1.1 * STALE)])
def test_the_lock_of_a_process_that_is_gone_counts_no_longer(tmp_path, owner, age):
    with RunLock(locked_by(tmp_path, owner, age)) as lock:
        lock.acquire()
        assert json.loads((tmp_path / LOCK).read_text()) == HERE
    assert [path.name for path in tmp_path.iterdir()] == [STATUS]
    assert read_status(tmp_path)["state"] == "interrupted", "the run of the process that is gone"


@pytest.mark.fault("two runs in a folder")
def test_the_process_whose_folder_is_taken_over_ends(tmp_path):
    with refused("taken over", str(HERE["process"])), RunLock(tmp_path) as first:
        first.acquire()
        first.begin()
        first.require()
        second = RunLock(tmp_path, take_over=True)
        second.owner = {**HERE, "started": 0.0}
        second.acquire()
        first.require()
    assert json.loads((tmp_path / LOCK).read_text()) == second.owner and read_status(tmp_path)["state"] == "running"


@pytest.mark.fault("files of a user")
@pytest.mark.parametrize("name", OF_A_RUN)
def test_files_that_no_run_has_written_are_refused(tmp_path, name):
    """Whatever a run writes has a name that a file of a user may have."""
    (tmp_path / name).write_text("mine")
    with refused(name, "run.output_dir"), RunLock(tmp_path) as lock:
        lock.acquire()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


@pytest.mark.fault("files of a user")
@pytest.mark.parametrize("status", ['{"ok": true}', '{"state": "closed"}', '{"state": {}}', "[]", "mine"])
def test_a_status_that_no_run_has_written_opens_no_folder(tmp_path, status):
    (tmp_path / STATUS).write_text(status)
    (tmp_path / LOG).write_text("mine")
    with refused(LOG, "run.output_dir"), RunLock(tmp_path) as lock:
        lock.acquire()
    assert (tmp_path / LOG).read_text() == "mine" and (tmp_path / STATUS).read_text() == status


def test_a_run_that_has_lost_its_status_goes_on(tmp_path):
    (tmp_path / MANIFEST).write_text('{"data": {}, "versions": {}, "processes": 1}')
    (tmp_path / LOG).write_text("")
    with RunLock(tmp_path) as lock:
        lock.acquire()
        lock.begin()
    assert read_status(tmp_path)["state"] == "finished"


@pytest.mark.fault("status of a run")
@pytest.mark.parametrize("owner", [{**ELSEWHERE, "host": 1}, {**ELSEWHERE, "host": []}, {**ALIVE, "process": "x"}, {}])
def test_a_damaged_lock_counts_no_longer(tmp_path, owner):
    with RunLock(locked_by(tmp_path, owner)) as lock:
        lock.acquire()
        lock.require()


@pytest.mark.fault("links in a run")
@pytest.mark.parametrize("name", [f".{LOCK}.{{pid}}", LOCK, STATUS])
def test_a_folder_is_not_claimed_through_links(tmp_path, name):
    private = tmp_path / "private.json"
    private.write_text('{"state": "private"}')
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name.format(pid=os.getpid())).symlink_to(private)
    with RunLock(tmp_path / "run") as lock:
        lock.acquire()
        lock.begin()
        lock.require()
    assert private.read_text() == '{"state": "private"}' and read_status(tmp_path / "run")["state"] == "finished"


def test_other_files_may_be_in_the_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with RunLock(tmp_path) as lock:
        lock.acquire()
    assert (tmp_path / "notes.txt").read_text() == "mine" and not (tmp_path / LOCK).exists()


@pytest.mark.parametrize(
    ("error", "state"), [(None, "finished"), (RunLockError("no room"), "failed"), (SystemExit(75), "interrupted")]
)
def test_the_folder_shows_what_has_become_of_the_run(tmp_path, error, state):
    with pytest.raises(BaseException) if error else run_lock.contextlib.nullcontext(), RunLock(tmp_path) as lock:
        lock.acquire()
        lock.begin()
        assert read_status(tmp_path)["state"] == "running"
        if error:
            raise error
    status = read_status(tmp_path)
    assert status["state"] == state and status.get("message", "no room") == "no room" and not (tmp_path / LOCK).exists()


@pytest.mark.fault("status of a run")
@pytest.mark.parametrize(
    ("status", "owner", "words"),
    [
        ({"state": "running", "time": "2026-01-02T03:04:05+00:00"}, ALIVE, "running (since 2026-01-02T03:04:05+00:00)"),
        ({"state": "running"}, ELSEWHERE, "running"),
        ({"state": "running"}, GONE, "no longer running: its process is gone"),
        ({"state": "running"}, REUSED, "no longer running: its process is gone"),
        ({"state": "running"}, None, "no longer running: its process is gone"),
        ({"state": "running"}, {"host": 3}, "no longer running: its process is gone"),
        ({"state": "running"}, {**GONE, "process": "x"}, "no longer running: its process is gone"),
        ({"state": "interrupted"}, None, "interrupted; continue it with resume_from_checkpoint=auto"),
        ({"state": "failed", "message": "no room"}, None, "failed: no room"),
        ({"state": "finished"}, GONE, "finished"),
    ],
)
def test_users_learn_what_has_become_of_a_run(tmp_path, status, owner, words):
    (tmp_path / STATUS).write_text(json.dumps(status))
    if owner is not None:
        (tmp_path / LOCK).write_text(json.dumps(owner))
    description = describe_status(tmp_path)
    assert description.startswith(words) if "gone" in words else description == words


def test_a_run_on_another_machine_that_renews_its_lock_no_longer_is_gone(tmp_path):
    assert describe_status(locked_by(tmp_path, ELSEWHERE, age=1.1 * STALE)).startswith("no longer running")


@pytest.mark.fault("status of a run")
@pytest.mark.parametrize("content", [None, "{", "[]", '{"state": "x"}', '{"state": {}}', "[" * 100_000, "link"])
def test_nothing_is_known_of_a_run_without_a_readable_status(tmp_path, content):
    if content == "link":
        (tmp_path / "private").write_text('{"state": "failed", "message": "private"}')
        (tmp_path / STATUS).symlink_to(tmp_path / "private")
    elif content is not None:
        (tmp_path / STATUS).write_text(content)
    assert describe_status(tmp_path) == ""


def test_a_start_that_is_refused_changes_nothing(tmp_path):
    (tmp_path / STATUS).write_text('{"state": "finished"}')
    with pytest.raises(RunLockError), RunLock(tmp_path) as lock:
        lock.acquire()
        raise RunLockError("another recipe")
    assert read_status(tmp_path) == {"state": "finished"} and not (tmp_path / LOCK).exists()


def test_a_lock_works_on_file_systems_without_links(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(run_lock.os, "link", link)
    with RunLock(tmp_path) as lock:
        lock.acquire()
        assert json.loads((tmp_path / LOCK).read_text()) == HERE
        other = RunLock(tmp_path)
        other.owner = ALIVE
        with pytest.raises(RunLockError):
            other.acquire()
