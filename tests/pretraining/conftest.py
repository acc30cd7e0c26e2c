"""The program in this process."""

import os

import pytest
from accelerate.state import AcceleratorState

from hssl_hf.cli.programs import launch
from hssl_hf.cli.programs import pretrain as pretrain_program
from tests.launches import settings_of


@pytest.fixture
def pretrain(tmp_path, monkeypatch, forked_parity):
    """Run the program in this process with tiny settings; returns its exit code."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})  # one thread

    def run(*arguments: str, method: str = "hssl") -> int:
        AcceleratorState._reset_state(reset_partial_state=True)
        fixed = [*settings_of(method), f"run.output_dir={tmp_path}/run", "data.num_workers=0"]
        return launch(pretrain_program, [*fixed, *arguments])

    yield run
    AcceleratorState._reset_state(reset_partial_state=True)
