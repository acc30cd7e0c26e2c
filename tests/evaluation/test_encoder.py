"""An export whose weights are not those of a model gives no features."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hssl_hf.evaluation.encoder import load_encoder
from hssl_hf.publish.image_processor import image_processor
from hssl_hf.publish.to_transformers import to_transformers
from tests.conftest import tiny_model
from tests.faults import refused


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    to_transformers(tiny_model().teacher.base, 32).save_pretrained(folder)
    image_processor(32).save_pretrained(folder)
    return folder


@pytest.fixture
def copied(export, tmp_path):
    shutil.copytree(export, tmp_path / "export")
    return tmp_path / "export"


def change(folder, function) -> None:
    state = load_file(folder / "model.safetensors")
    function(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.fault("damaged exports")
@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda state: state.pop("layernorm.weight"), "missing: layernorm.weight"),
        (lambda state: state["layernorm.bias"].fill_(float("nan")), "not finite: layernorm.bias"),
        (lambda state: state["embeddings.cls_token"][..., :1].fill_(float("inf")), "not finite: embeddings.cls_token"),
        (lambda state: state.update({"layernorm.weight": torch.ones(3)}), "layernorm.weight"),
        (lambda state: state.update({"embeddings.position_embeddings": torch.ones(1, 5, 64)}), "position_embeddings"),
        (lambda state: state.clear(), "missing"),
    ],
)
def test_weights_that_are_missing_misshapen_or_no_numbers(copied, spoil, word):
    change(copied, spoil)
    with refused(str(copied), word):
        load_encoder(copied)


@pytest.mark.fault("damaged exports")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut short", "a list", "zeros"])
def test_files_that_are_damaged(copied, name, damage):
    path = copied / name
    contents = {"empty": b"", "cut short": path.read_bytes()[:-30], "a list": b"[1]", "zeros": bytes(500)}
    path.write_bytes(contents[damage]) if damage in contents else path.unlink()
    with refused(str(copied)):
        load_encoder(str(copied))


@pytest.mark.fault("damaged exports")
@pytest.mark.parametrize("values", [{"model_type": "nothing"}, {"hidden_size": "wide"}, {"image_size": -1}, {"patch_size": 0}])
def test_configurations_that_no_model_has(copied, values):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | values))
    with refused(str(copied)):
        load_encoder(copied)


def test_a_pooler_without_weights_is_not_used(copied):
    """Stock ViTs of the Hub often lack it; transformers would make a random one."""
    pixels = torch.randn(2, 3, 32, 32)
    before, _ = load_encoder(copied)
    change(copied, lambda state: [state.pop(name) for name in list(state) if name.startswith("pooler.")])
    after, _ = load_encoder(copied)
    torch.testing.assert_close(after(pixels)[0], before(pixels)[0])
