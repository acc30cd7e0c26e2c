import io
import json
import os
import shutil

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from hssl_hf.engine.checkpoint import CheckpointError, CheckpointManager
from hssl_hf.engine.distributed import Engine
from hssl_hf.runs.run_directory import RunDirectory
from tests.faults import refused


class Layer(torch.nn.Linear):
    has_unused_parameters = False


@pytest.fixture
def engine():
    torch.manual_seed(0)
    layer = Layer(3, 2)
    return Engine(Accelerator(cpu=True), layer, torch.optim.AdamW(layer.parameters(), fused=True), bf16=False)


def move(engine):
    engine.backward(engine.model(torch.randn(4, 3)).square().sum())
    engine.optimizer.step()
    engine.optimizer.zero_grad()


def test_everything_comes_back(engine, tmp_path):
    move(engine)
    checkpoints = CheckpointManager(tmp_path)
    path = checkpoints.save(engine, 7, {"position": 11}, {"corrupt": ["x"]})
    expected = []
    for _ in range(2):
        move(engine)
        expected.append((engine.method.weight.clone(), torch.rand(3)))
    state, loader = checkpoints.load(engine, path)
    assert (state["step"], state["corrupt"]) == (7, ["x"]) and loader == [{"position": 11}]
    for weight, random in expected:
        move(engine)
        assert torch.equal(engine.method.weight, weight) and torch.equal(torch.rand(3), random)


def test_only_the_newest_stay_and_drafts_do_not_count(engine, tmp_path):
    checkpoints = CheckpointManager(tmp_path, keep=2)
    for step in (1, 2, 10):
        checkpoints.save(engine, step, {}, {})
    assert [path.name for path in checkpoints.all()] == ["step-00000002", "step-00000010"]
    (tmp_path / "step-00000011").mkdir()
    (tmp_path / ".step-00000012.draft").mkdir()
    assert checkpoints.all()[-1].name == "step-00000010", "a folder without its state is no checkpoint"


def test_failure_keeps_the_last_good_one_and_reports_it(engine, tmp_path, monkeypatch):
    checkpoints = CheckpointManager(tmp_path)
    good = checkpoints.save(engine, 1, {}, {})
    before = {path.name: path.read_bytes() for path in good.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        CheckpointError, match=r"step 2 .*MiB free\): .*No space left.*\n.*step-00000001.*resume_from_checkpoint=auto"
    ):
        checkpoints.save(engine, 2, {}, {})
    assert {path.name: path.read_bytes() for path in good.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_damage_is_reported_with_what_to_do(engine, tmp_path):
    path = CheckpointManager(tmp_path).save(engine, 1, {}, {})
    (path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"is damaged.*\nRemove that folder"):
        CheckpointManager(tmp_path).load(engine, path)


def test_folder_without_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        RunDirectory.open(tmp_path)


@pytest.mark.fault("checkpoints")
def test_damaged_checkpoints_are_not_exported(engine, tmp_path):
    checkpoints = CheckpointManager(tmp_path / "checkpoints")
    good, bad = (checkpoints.save(engine, step, {}, {}) for step in (1, 2))
    (bad / "model.safetensors").write_bytes(b"cut")
    assert RunDirectory.open(tmp_path).checkpoint == good
    with refused("step-00000002 is damaged", "model.safetensors"):
        RunDirectory.open(bad)


def test_state_is_plain_json(engine, tmp_path):
    path = CheckpointManager(tmp_path).save(engine, 3, {}, {})
    state = json.loads((path / "state.json").read_text())
    assert (state["step"], state["processes"]) == (3, 1) and {
        "model.safetensors",
        "optimizer.safetensors",
        "process-0.pt",
    } == set(state["files"])


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "state"])
def test_damaged_checkpoints_are_quarantined(engine, tmp_path, damage, caplog):
    checkpoints = CheckpointManager(tmp_path)
    good, bad = (checkpoints.save(engine, step, {}, {}) for step in (1, 2))
    assert checkpoints.latest_valid(quarantine=True) == bad
    file = bad / ("state.json" if damage == "state" else "optimizer.safetensors")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink() if damage == "missing" else file.write_bytes(data[:-1] if damage in ("cut", "state") else data)
    assert checkpoints.latest_valid() == good and bad.is_dir(), "reading moves nothing"
    assert checkpoints.latest_valid(quarantine=True) == good and "step-00000002 is damaged" in caplog.text
    assert checkpoints.all() == [good] and (tmp_path / "damaged-step-00000002").is_dir()


@pytest.mark.fault("checkpoints")
@pytest.mark.parametrize(
    "change", [{"seconds": "x"}, {"processes": "x"}, {"frozen_steps": []}, {"extra": 1}, {"files": {}}, None]
)
def test_a_changed_state_counts_as_damaged(engine, tmp_path, change, caplog):
    """Its own checksum covers the values that resuming needs."""
    checkpoints = CheckpointManager(tmp_path)
    good, bad = (checkpoints.save(engine, step, {}, {"seconds": 1.0, "frozen_steps": 0}) for step in (1, 2))
    state = json.loads((bad / "state.json").read_text())
    (bad / "state.json").write_text("[" * 100_000 if change is None else json.dumps(state | change))
    assert checkpoints.latest_valid() == good and "step-00000002 is damaged (state.json" in caplog.text


@pytest.mark.fault("checkpoints")
@pytest.mark.parametrize("damage", ["cut", "missing", "state", "empty"])
def test_nothing_starts_at_step_0_where_all_checkpoints_are_damaged(engine, tmp_path, damage):
    checkpoints = CheckpointManager(tmp_path)
    for step in (1, 2):
        path = checkpoints.save(engine, step, {}, {})
        file = path / ("state.json" if damage in ("state", "empty") else "model.safetensors")
        file.unlink() if damage == "missing" else file.write_bytes(b"{}" if damage == "empty" else file.read_bytes()[:-9])
    for _ in range(2):  # a second start neither
        with refused("all of its 2 are damaged", "step-00000001", "run.output_dir"):
            checkpoints.latest_valid(quarantine=True)
    (tmp_path / "step-00000001").rename(tmp_path / "damaged-step-00000001")
    shutil.rmtree(tmp_path / "step-00000002")
    with refused("damaged-step-00000001"):
        checkpoints.latest_valid(quarantine=True)
    assert checkpoints.exist()


@pytest.mark.fault("checkpoints")
@pytest.mark.parametrize("stray", ["copied", "empty state", "no state", "only a state"])
def test_a_stray_folder_is_not_the_newest_checkpoint(engine, tmp_path, stray):
    checkpoints = CheckpointManager(tmp_path, keep=2)
    paths = [checkpoints.save(engine, step, {}, {}) for step in (1, 2)]
    folder = tmp_path / "step-99999999"
    if stray == "copied":
        shutil.copytree(paths[0], folder)
    else:
        folder.mkdir()
        state = {"empty state": "{}", "only a state": '{"step": 99999999, "files": {}}'}.get(stray)
        if state is not None:
            (folder / "state.json").write_text(state)
    assert checkpoints.latest_valid() == paths[1]
    checkpoints.save(engine, 3, {}, {})
    assert {"step-00000002", "step-00000003"} <= {path.name for path in checkpoints.all()}, "it counts as none of the newest"


class Harmful:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("name", ["optimizer.safetensors", "process-0.pt"])
def test_a_foreign_checkpoint_runs_nothing(engine, tmp_path, name):
    checkpoints = CheckpointManager(tmp_path / "checkpoints")
    path = checkpoints.save(engine, 1, {}, {})
    torch.save(Harmful(tmp_path / "harm"), path / name)
    with pytest.raises(CheckpointError):
        checkpoints.load(engine, path)
    assert not (tmp_path / "harm").exists()
    torch.load(io.BytesIO((path / name).read_bytes()), weights_only=False)
    assert (tmp_path / "harm").exists(), "the file is harmful indeed"


@pytest.mark.fault("checkpoints")
@pytest.mark.parametrize("name", ["weight", "exp_avg/weight", "exp_avg/bias", "step/bias"])
def test_a_checkpoint_of_another_model_is_refused(engine, tmp_path, name):
    move(engine)
    path = CheckpointManager(tmp_path).save(engine, 1, {}, {})
    file = path / ("optimizer.safetensors" if "/" in name else "model.safetensors")
    tensors = load_file(file)
    for change in ({name: torch.zeros(5)}, {f"{name}s": tensors[name].clone()}):
        save_file(tensors | change, file)
        with refused("step-00000001", name):
            CheckpointManager(tmp_path).load(engine, path)
