"""What is loaded as an encoder, what is refused, and what holds for every encoder."""

import json
import logging
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from hssl_hf.evaluation.encoder import load_encoder, untrained
from hssl_hf.publish.image_processor import image_processor
from hssl_hf.publish.to_backbone import to_backbone
from hssl_hf.publish.to_transformers import to_transformers
from tests.conftest import tiny_model, tiny_siamese, write_stock_backbone
from tests.faults import refused


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return write_stock_backbone(tmp_path_factory.mktemp("export"))


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
        (lambda state: state.update({"layers.2.mlp.fc1.weight": torch.ones(3)}), "unknown: layers.2.mlp.fc1.weight"),
        (lambda state: state.update({"adapter.weight": torch.ones(3)}), "unknown: adapter.weight"),
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


OTHERS = {  # timm models, which are trained in this package, and their arguments
    "resnet18": {},
    "convnext_atto": {"depths": (1, 1, 1, 1)},
    "swin_tiny_patch4_window7_224": {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)},
}
OBJECTIVE = {"objective": "dino", "auxiliary": "resnet", "image_size": 64}
METHODS = {
    "hssl": lambda: tiny_model(),
    "siamese": lambda: tiny_siamese(),
    **{
        name: lambda name=name, kwargs=kwargs: tiny_model(backbone=name, backbone_kwargs=kwargs, **OBJECTIVE)
        for name, kwargs in OTHERS.items()
    },
}


@pytest.mark.parametrize("method", METHODS)
def test_training_revisions(method, tmp_path):
    """The base of a full checkpoint, with the network that an export takes."""
    model, vit = METHODS[method]().eval(), method not in OTHERS
    size = model.config.image_size
    model.save_pretrained(tmp_path)
    image_processor(size).save_pretrained(tmp_path)
    encoder, _ = load_encoder(tmp_path)
    for height, width in [(size, size), (size, 2 * size)] if "swin" not in method else [(size, size)]:
        pixels = torch.randn(2, 3, height, width)
        with torch.no_grad():
            expected = model.encode(pixels)
        torch.testing.assert_close(encoder(pixels), (expected.cls, expected.patches), atol=1e-5, rtol=1e-4)
    if vit:
        with torch.no_grad():
            base = model.get_network(model.default_network).base
            states = list(base.hidden_states(pixels))[1:]
        cls, patches = encoder.forward_intermediates(pixels, [0], norm=False)[0]
        torch.testing.assert_close((cls, patches.flatten(1, 2)), (states[0][:, 0], states[0][:, 1:]))
    fresh = untrained(encoder, 3)
    assert type(fresh) is type(encoder) and not torch.allclose(fresh(pixels)[0], encoder(pixels)[0], atol=1e-3)
    torch.testing.assert_close(fresh(pixels), untrained(encoder, 3)(pixels), rtol=0, atol=0)


@pytest.mark.parametrize("make", [tiny_model, tiny_siamese])
def test_revisions_of_one_backbone_have_the_same_features(make, tmp_path):
    """Those without a final norm too: the stock model, feature maps for dense tasks, and the full checkpoint."""
    model, pixels = make().eval(), torch.randn(2, 3, 48, 32)
    base = model.get_network(model.default_network).base
    outputs = []
    for name, saved in {"main": to_transformers(base, 32), "backbone": to_backbone(base, 32), "training": model}.items():
        saved.save_pretrained(tmp_path / name)
        image_processor(32).save_pretrained(tmp_path / name)
        outputs.append(load_encoder(tmp_path / name)[0](pixels))
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], atol=1e-5, rtol=1e-4)


def test_blocks_are_numbered_like_a_list(export):
    encoder, _ = load_encoder(export)
    pixels = torch.randn(2, 3, 32, 32)
    first, last, again = encoder.forward_intermediates(pixels, [0, -1, -2])
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    torch.testing.assert_close(last, encoder(pixels), rtol=0, atol=0)
    for wrong in (2, -3):
        with refused("has 2 blocks", "from -2 to 1", str(wrong)):
            encoder.forward_intermediates(pixels, [0, wrong])


def test_encoders_are_frozen_modules_whose_outputs_can_be_trained_on(export):
    encoder, _ = load_encoder(export)
    pixels = torch.randn(2, 3, 32, 32)
    expected = encoder(pixels)
    cls, patches = encoder.to(torch.bfloat16)(pixels)
    assert cls.dtype == patches.dtype == torch.float32
    torch.testing.assert_close(cls, expected[0], atol=0.1, rtol=0.1)
    head = nn.Linear(encoder.width, 3)
    head(patches).sum().backward()
    assert not patches.requires_grad and head.weight.grad.isfinite().all()
    assert not any(parameter.requires_grad for parameter in encoder.parameters()) and not encoder.training


def test_an_untrained_encoder_is_initialized_by_its_library(export):
    encoder, _ = load_encoder(export)
    pixels = torch.randn(2, 3, 32, 32)
    state = torch.get_rng_state()
    fresh = untrained(encoder, 5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    expected = transformers.ViTModel(encoder.network.config).eval()
    torch.testing.assert_close(fresh(pixels)[0], expected(pixels).last_hidden_state[:, 0].detach())
    assert not torch.allclose(untrained(encoder, 6)(pixels)[0], fresh(pixels)[0], atol=1e-3)


def test_a_pooler_of_beit_without_weights_is_a_plain_layer_norm(tmp_path, caplog):
    config = transformers.BeitConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
    transformers.BeitModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    image_processor(32).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        encoder, _ = load_encoder(tmp_path)
    assert "without trained scale and shift" in caplog.text
    cls, patches = encoder(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(cls, nn.functional.layer_norm(patches.mean((1, 2)), (32,), eps=config.layer_norm_eps))


TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 40}
REFUSED = {  # configuration -> words of the message
    "text": (transformers.BertConfig(**TINY, vocab_size=10), "type 'bert' (BertModel)"),
    "detection": (transformers.YolosConfig(**TINY, num_detection_tokens=2, image_size=[32, 32]), "type 'yolos' (YolosModel)"),
}


@pytest.mark.fault("damaged exports")
@pytest.mark.parametrize("name", ["runs/none/export", "./none", "/none", "~/none", "../a/b"])
def test_a_folder_that_does_not_exist_is_called_so(name):
    with refused(f"there is no folder {name!r}", "user/name"):
        load_encoder(name)


@pytest.mark.fault("models that are no image encoders")
@pytest.mark.parametrize("kind", REFUSED)
def test_other_models_are_refused_by_their_type(kind, tmp_path):
    config, words = REFUSED[kind]
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    with refused(str(tmp_path), words, "expected one of beit", "vit_mae", "timm:NAME"):
        load_encoder(tmp_path)


@pytest.mark.fault("models that are no image encoders")
def test_code_of_a_repository_is_never_run(tmp_path):
    code = {"AutoConfig": "configuration_x.Config", "AutoModel": "modeling_x.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": code}))
    for name in ("configuration_x.py", "modeling_x.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    with refused(str(tmp_path), "code of its own repository, which is never run"):
        load_encoder(tmp_path)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.fault("models that are no image encoders")
def test_a_head_that_pools_must_have_its_weights(tmp_path):
    config = transformers.SiglipVisionConfig(**TINY, image_size=32, patch_size=8)
    transformers.SiglipVisionModel(config).save_pretrained(tmp_path)
    image_processor(32).save_pretrained(tmp_path)
    change(tmp_path, lambda state: [state.pop(name) for name in list(state) if "head." in name])
    with refused(str(tmp_path), "missing: head.attention.in_proj_weight"):
        load_encoder(tmp_path)
