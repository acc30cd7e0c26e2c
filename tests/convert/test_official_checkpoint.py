"""Weights are found where files of others keep them."""

import collections
import json

import pytest
import torch
from safetensors.torch import save_file

from hssl_hf.convert import convert_checkpoint
from hssl_hf.convert.official_checkpoint import Checkpoint, read_checkpoint
from tests.faults import refused

STATE = {"cls_token": torch.zeros(1, 1, 4), "blocks.0.weight": torch.ones(2)}


def prefixed(prefix: str) -> dict:
    return {f"{prefix}{name}": value for name, value in STATE.items()}


HEAD = {"head.mlp.0.weight": torch.zeros(2)}
CONTENTS = {
    "alone": STATE,
    "model": {"model": STATE, "epoch": 3},
    "state_dict": {"state_dict": STATE, "optimizer": {"state": {}}},
    "model_state_dict": {"model_state_dict": STATE},
    "teacher": {"teacher": STATE},
    "student": {"student": STATE, "teacher": None},
    "ordered": {"teacher": collections.OrderedDict(STATE)},
    "module": {"state_dict": prefixed("module.")},
    "backbone": {"state_dict": prefixed("backbone.")},
    "teacher with heads": {"teacher": prefixed("backbone.") | HEAD},
    "both prefixes": {"teacher": prefixed("module.backbone.") | {f"module.{name}": value for name, value in HEAD.items()}},
    "backbone before module": {"model": prefixed("backbone.module.")},
    "nested": {"state_dict": {"model": prefixed("module.")}},
}


@pytest.mark.parametrize("content", CONTENTS)
def test_containers_and_prefixes(content, tmp_path, caplog):
    torch.save(CONTENTS[content], tmp_path / "file.pth")
    state = read_checkpoint(tmp_path / "file.pth").state
    assert state.keys() == STATE.keys() and all(torch.equal(state[name], STATE[name]) for name in STATE)
    assert ("1 tensors are left out, such as" in caplog.text) == (content in ("teacher with heads", "both prefixes"))


def test_student_and_teacher_stay_apart(tmp_path):
    both = {
        "student": prefixed("module.backbone."),
        "teacher": prefixed("backbone."),
        "dino_loss": {"center": torch.zeros(1, 3)},
    }
    torch.save(both, tmp_path / "file.pth")
    names = {f"{network}.backbone.{name}" for network in ("student", "teacher") for name in STATE} | {"loss.center"}
    assert read_checkpoint(str(tmp_path / "file.pth")).state.keys() == names


@pytest.mark.fault("files without weights")
@pytest.mark.parametrize(
    "content",
    [
        {},
        {"epoch": 3},
        [1, 2],
        "text",
        {"model": {}},
        {"model": 3, "state_dict": None},
        {"a": torch.zeros(1), "b": 3},
        torch.zeros(3),
    ],
    ids=str,
)
def test_files_without_weights(content, tmp_path):
    torch.save(content, tmp_path / "file.pth")
    with refused("file.pth", "holds no weights", "model_state_dict"):
        read_checkpoint(tmp_path / "file.pth")


@pytest.mark.fault("damaged files of weights")
@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([1.0, float("nan")]),
        torch.tensor([float("-inf")]),
        torch.ones(2, 2).to_sparse(),
        torch.ones(2, dtype=torch.complex64),
    ],
    ids=["NaN", "infinite", "sparse", "complex"],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of torch, about what is read
def test_tensors_that_are_no_weights(tensor, tmp_path):
    torch.save({"model": {"good": torch.ones(1), "bad": tensor}}, tmp_path / "file.pth")
    with refused("file.pth", "others in bad (1 of 2)"):
        read_checkpoint(tmp_path / "file.pth")


@pytest.mark.fault("damaged files of weights")
@pytest.mark.parametrize("value", ["abc", [1], None, float("nan"), True])
def test_arguments_that_are_no_numbers(value):
    with refused("args.drop_path: expected a number"):
        Checkpoint({}, {"drop_path": value}).number("drop_path", default=0.1)
    assert Checkpoint({}).number("drop_path", default=0.1) == 0.1
    with refused("args.norm_last_layer: expected True or False"):
        Checkpoint({}, {"norm_last_layer": "False"}).flag("norm_last_layer")


@pytest.mark.fault("damaged files of weights")
@pytest.mark.parametrize("name", ["file.pth", "file.safetensors", "file.pkl", "file.txt"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut short", "text", "folder", "zeros", "json"])
def test_damaged_files(name, damage, tmp_path):
    path = tmp_path / name
    if damage == "cut short":
        (save_file if path.suffix == ".safetensors" else torch.save)(STATE, path)
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "folder":
        path.mkdir()
    elif damage != "missing":
        contents = {"empty": b"", "text": b"a text\n", "zeros": bytes(1000), "json": json.dumps({"a": 1}).encode()}
        path.write_bytes(contents[damage])
    with refused(str(path)):
        convert_checkpoint(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("outputs that cannot be written")
def test_the_folder_is_checked_before_the_file_is_read(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    for folder, word in (("mine", "thesis.txt"), ("file/out", "cannot be written"), ("file", "choose another folder")):
        with refused(word):
            convert_checkpoint(tmp_path / "no-such-file.pth", str(tmp_path / folder))


@pytest.mark.fault("recipe values")
@pytest.mark.parametrize(
    "change", [{"method": "simclr"}, {"decoder_num_attention_heads": 0}, {"backbone_kwargs": {"num_heads": -1}}]
)
def test_values_are_checked_before_the_file_is_read(change, tmp_path):
    with refused("expected"):
        convert_checkpoint(tmp_path / "no-such-file.pth", tmp_path / "out", **change)
