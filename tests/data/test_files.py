"""Files of a run and of users: no link is followed, nothing is written in part, damaged lines are skipped and named."""

import json
import os
import resource
from contextlib import contextmanager

import pytest

from hssl_hf.data.files import (
    append_line,
    make_folder_below,
    read_below,
    read_lines,
    read_object,
    require_output,
    require_writable,
    write_below,
)  # fmt: skip
from tests.faults import refused


@contextmanager
def full_disk(size: int):
    """No file may grow beyond a size, as on a disk without room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def secret(tmp_path):
    """A file beside the folder of a run."""
    (tmp_path / "run" / "figures").mkdir(parents=True)
    (tmp_path / "private").mkdir()
    file = tmp_path / "private" / "views.png"
    file.write_text("private")
    return file


@pytest.mark.fault("links in a run")
@pytest.mark.parametrize("kind", ["file", "folder", "chain", "pipe", "directory", "loop"])
def test_nothing_is_read_through_links(kind, secret, tmp_path):
    run, name = tmp_path / "run", "figures/views.png"
    if kind == "folder":
        (run / "figures").rmdir()
        (run / "figures").symlink_to(secret.parent)
    elif kind == "pipe":
        os.mkfifo(run / name)
    elif kind == "directory":
        (run / name).mkdir()
    elif kind == "chain":
        (run / "other.png").symlink_to(secret)
        (run / name).symlink_to("../other.png")
    else:
        (run / name).symlink_to(secret if kind == "file" else run / name)
    with refused(str(run / name), "directory" if kind == "directory" else "link"):
        read_below(run, name)


@pytest.mark.fault("links in a run")
def test_nothing_is_written_through_links(secret, tmp_path):
    run = tmp_path / "run"
    (run / "figures" / "views.png").symlink_to(secret)
    write_below(run, "figures/views.png", b"drawn")
    assert secret.read_text() == "private" and not (run / "figures" / "views.png").is_symlink()
    assert read_below(run, "figures/views.png") == b"drawn"
    (run / "curves").symlink_to(secret.parent)
    with refused("link", "curves"):
        write_below(run, "curves/views.png", b"drawn")
    assert secret.read_text() == "private" and list(secret.parent.iterdir()) == [secret]


@pytest.mark.fault("links in a run")
@pytest.mark.parametrize("kind", ["file", "broken", "folder", "pipe"])
def test_nothing_is_appended_through_links(kind, secret, tmp_path):
    path = tmp_path / "run" / "log.jsonl"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"file": secret, "broken": secret.with_name("new"), "folder": secret.parent}[kind])
    with refused(str(path), "link"):
        append_line(path, {"step": 1})
    assert secret.read_text() == "private" and list(secret.parent.iterdir()) == [secret]


@pytest.mark.fault("links in a run")
@pytest.mark.parametrize("kind", ["nothing", "folder", "file", "link to a file", "link to a folder", "broken link"])
def test_a_new_folder_is_empty_and_no_link(kind, secret, tmp_path):
    path = tmp_path / "run" / "captures" / "step-1"
    path.parent.mkdir()
    if kind == "folder":
        (path / "before").mkdir(parents=True)
    elif kind == "file":
        path.write_text("before")
    elif kind != "nothing":
        path.symlink_to({"file": secret, "folder": secret.parent, "link": secret.with_name("new")}[kind.split()[-1]])
    assert (
        make_folder_below(tmp_path / "run", "captures/step-1") == path and not path.is_symlink() and list(path.iterdir()) == []
    )
    assert secret.read_text() == "private" and list(secret.parent.iterdir()) == [secret]


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "scratch")
    write_below(tmp_path / "run", "figures/views.png", "text")
    assert (tmp_path / "scratch" / "figures" / "views.png").read_text() == "text"


@pytest.mark.fault("full disks")
def test_a_full_disk_leaves_the_earlier_file(tmp_path):
    write_below(tmp_path, "log.jsonl", "before")
    with full_disk(100), refused("log.jsonl", "too large", "make room"):
        write_below(tmp_path, "log.jsonl", "x" * 1000)
    assert (tmp_path / "log.jsonl").read_text() == "before" and list(tmp_path.iterdir()) == [tmp_path / "log.jsonl"]
    with full_disk(100), refused("log.jsonl", "make room"):
        append_line(tmp_path / "log.jsonl", {"text": "x" * 1000})


def test_a_line_follows_one_that_was_cut_short(tmp_path, caplog):
    path = tmp_path / "log.jsonl"
    append_line(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    append_line(path, {"step": 3})
    append_line(path, {"step": 4})
    assert [line["step"] for line in read_lines(path)] == [1, 3, 4]
    assert f"{path}: damaged lines are skipped: line 2 (" in caplog.text


@pytest.mark.fault("damaged files of a run")
@pytest.mark.parametrize(
    "text", ["{", "[1]", "3", "null", "\x00\x00", '"text"', "[" * 100_000, "\udce9".encode(errors="ignore")]
)
def test_damaged_lines_are_skipped_and_named(text, tmp_path, caplog):
    path = tmp_path / "lines.jsonl"
    content = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(b'{"a": 1}\n' + (content or b"\xff\xfe") + b'\n\n{"a": 2}\n')
    assert read_lines(path) == [{"a": 1}, {"a": 2}] and "line 2 (" in caplog.text and len(caplog.text) < 600
    caplog.clear()
    (tmp_path / "object.json").write_bytes(content or b"\xff\xfe")
    assert read_object(tmp_path / "object.json") == {} and "damaged" in caplog.text
    assert read_lines(tmp_path / "none") == [] and read_object(tmp_path / "none") == {}


@pytest.mark.fault("outputs that cannot be written")
@pytest.mark.parametrize("name", ["nowhere/file.png", "folder", "file.exe", "file.txt/file.png"])
def test_outputs_are_checked_before_any_work(name, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").write_text("")
    with refused("output: expected a file", str(tmp_path / name)):
        require_output(tmp_path / name, "output", "png", "pdf")
    require_output(tmp_path / "file.PNG", "output", "png")
    require_output(None, "output")
    require_output(str(tmp_path / "any"), "output")


@pytest.mark.fault("outputs that cannot be written")
def test_folders_are_checked_before_any_work(tmp_path, monkeypatch):
    require_writable(tmp_path / "new" / "folder")
    (tmp_path / "file").write_text("")
    with refused(str(tmp_path / "file" / "folder"), "is not a folder"):
        require_writable(tmp_path / "file" / "folder")
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser of a container may write everywhere
    with refused("without write permission"):
        require_writable(str(tmp_path))
    with refused("cannot be written"):
        require_output(tmp_path / "file", "output")


def test_text_is_json_lines(tmp_path):
    append_line(str(tmp_path / "a"), {"name": "é", "value": 1.5})
    assert json.loads((tmp_path / "a").read_text()) == {"name": "é", "value": 1.5}
