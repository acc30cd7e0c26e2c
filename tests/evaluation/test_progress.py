import contextlib
import io
import os
import sys

import pytest

from hssl_hf.evaluation.progress import ProgressBar


def written(interval: float, function) -> str:
    """What a function writes to a standard error that is no terminal."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as stream:
        patch.setenv("TQDM_MININTERVAL", str(interval))
        function()
        return stream.getvalue()


def count(steps: int, **options) -> None:
    with ProgressBar(total=steps, **options) as bar:
        for _ in range(steps):
            bar.update()


def test_a_log_file_gets_lines():
    text = written(0, lambda: count(3, unit="step"))
    assert "\r" not in text and "" not in text.splitlines()
    assert [line.split(" [")[0].split("|")[-1].strip() for line in text.splitlines()] == ["0/3", "1/3", "2/3", "3/3"]


def test_lines_come_at_intervals():
    assert len(written(1000, lambda: count(50)).splitlines()) == 2, "at the start and at the end"


def test_no_thread_adds_lines():
    """tqdm's monitor shows bars that have come to skip updates once more."""

    def count_by_five():
        with ProgressBar(total=50) as bar:
            for _ in range(10):
                bar.update(5)
            assert bar.miniters == 1

    assert len(written(0, count_by_five).splitlines()) == 11


@pytest.mark.parametrize("leave", [True, False])
def test_only_the_outermost_bar_is_shown_in_a_log_file(leave):
    def nested():
        with ProgressBar(total=1, desc="outer"):
            count(3, desc="inner", leave=leave)
        count(1, desc="later", leave=leave)

    text = written(0, nested)
    assert "outer" in text and "later" in text and "inner" not in text and "\r" not in text


def test_a_bar_whose_constructor_was_interrupted_ends_in_silence(capsys):
    del [ProgressBar.__new__(ProgressBar)][0]
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_in_place(monkeypatch):
    terminal, program = os.openpty()
    with os.fdopen(program, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        count(2, mininterval=0, ncols=80, nrows=20)
    text = b""
    with contextlib.suppress(OSError), os.fdopen(terminal, "rb", buffering=0) as file:  # at the end of a terminal
        while part := file.read(10_000):
            text += part
    assert text.count(b"\r") >= 3


def test_a_closed_standard_error_is_noticed(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    with ProgressBar(total=2) as bar:
        bar.update()
    assert bar.broken
    with pytest.raises(BrokenPipeError):
        stream.close()
