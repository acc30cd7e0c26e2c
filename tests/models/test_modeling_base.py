"""The encoders: loaded from a full checkpoint, they are the exported stock model; and what holds for all our models."""

import copy
import inspect
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, AutoModelForPreTraining

from hssl_hf import HeadSearchConfig, HeadSearchForPreTraining, HSSLMAEConfig, HSSLMAEForPreTraining, HSSLModel
from hssl_hf.evaluation.encoder import load_encoder
from hssl_hf.modules.backbone import repeated_blocks
from hssl_hf.publish.export import export_backbone
from hssl_hf.publish.image_processor import image_processor
from tests.conftest import TINY_VIT, checkpointing, siamese_views, tiny_config, tiny_model, tiny_siamese, tiny_views


def tiny_mae(**changes):
    torch.manual_seed(0)
    arguments = {"backbone": "vit_tiny_patch16_224", "backbone_kwargs": TINY_VIT, "image_size": 32, "auxiliary_depth": 1}
    decoder = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    return HSSLMAEForPreTraining(HSSLMAEConfig(**arguments | decoder | changes))


def tiny_search(**changes):
    torch.manual_seed(0)
    config = tiny_config().to_dict() | {"candidates": ["vit", "resmlp"], "auxiliary_depth": 1, **changes}
    return HeadSearchForPreTraining(HeadSearchConfig(**{key: value for key, value in config.items() if key != "model_type"}))


def tiny_other(backbone: str, **kwargs):
    """A base that is no vision transformer, for images of 64 pixels."""
    arguments = {"image_size": 64, "objective": "dino", "auxiliary": "resmlp", "auxiliary_depth": 1}
    return tiny_model(backbone=backbone, backbone_kwargs=kwargs, **arguments)


MODELS = {"HSSLModel": tiny_model, "HSSLMAEModel": tiny_mae, "SiameseIMModel": tiny_siamese, "HeadSearchModel": tiny_search}
BASES = {
    "resnet18": lambda: tiny_other("resnet18"),
    "convnext": lambda: tiny_other("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
    "swin": lambda: tiny_other(
        "swin_tiny_patch4_window7_224", embed_dim=16, depths=(2, 1, 2, 1), num_heads=(1, 1, 2, 2), window_size=2
    ),
    "poolformer": lambda: tiny_other("poolformer_s12"),
}
VIEWS = {"HSSLModel": tiny_views, "HSSLMAEModel": siamese_views, "SiameseIMModel": siamese_views, "HeadSearchModel": tiny_views}


def arguments_for(model, name: str, images: int = 4) -> dict:
    views = VIEWS[name](images=images)
    if name == "HSSLMAEModel":
        views = {"pixel_values": views["pixel_values"][:1], "bool_masked_pos": views["bool_masked_pos"]}
    return {key: value.to(model.dtype) if value.is_floating_point() else value for key, value in views.items()}


def moved(model):
    """With a teacher that differs from the student, so that a mistaken network shows."""
    with torch.no_grad():
        for network in (model.student, model.teacher):
            for parameter in [] if network is None else network.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", [*MODELS, *BASES])
def test_an_encoder_is_the_exported_model(tmp_path, unchecked, name):
    """Loaded from a full checkpoint with an empty report, it has the outputs of the stock model, and keeps them when saved."""
    model = moved((MODELS | BASES)[name]())
    model.save_pretrained(tmp_path / "full")
    image_processor(model.config.image_size).save_pretrained(tmp_path / "full")
    encoder, info = AutoModel.from_pretrained(tmp_path / "full", output_loading_info=True)
    assert not any(info.values()) and type(encoder).__name__ == (name if name in MODELS else "HSSLModel")
    stock = AutoModel.from_pretrained(export_backbone(model, tmp_path / "stock"))
    pixels = torch.randn(2, 3, model.config.image_size, model.config.image_size)
    with torch.no_grad():
        actual, expected = encoder(pixels, output_hidden_states=True), stock(pixels, output_hidden_states=True)
    torch.testing.assert_close(actual.last_hidden_state, expected.last_hidden_state, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(actual.pooler_output, expected.pooler_output.flatten(1), atol=1e-4, rtol=1e-4)
    assert actual.pooler_output.shape == (2, model.config.hidden_size)
    if name in MODELS:
        encode, theirs = (load_encoder(tmp_path / folder)[0] for folder in ("full", "stock"))
        torch.testing.assert_close(encode(pixels), theirs(pixels), atol=1e-4, rtol=1e-4)
        for ours, theirs in zip(actual.hidden_states, expected.hidden_states, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    encoder.save_pretrained(tmp_path / "encoder")
    again, info = type(encoder).from_pretrained(tmp_path / "encoder", output_loading_info=True)
    assert not any(info.values()) and torch.equal(again(pixels).pooler_output, encoder(pixels).pooler_output)


def test_arguments_of_the_encoder():
    model = HSSLModel(tiny_config()).eval()
    large = torch.randn(1, 3, 48, 32)
    with pytest.raises(ValueError, match=r"expected images of 32 x 32 pixels, got 48 x 32; .*interpolate_pos_encoding=True"):
        model(large)
    assert model(pixel_values=large, interpolate_pos_encoding=True).last_hidden_state.shape == (1, 1 + 6 * 4, 64)
    small = torch.randn(1, 3, 32, 32)
    last, pooled, states = model(small, output_hidden_states=True, return_dict=False)
    assert len(states) == 1 + 2 and torch.equal(last[:, 0], pooled) and torch.equal(model.base.norm(states[-1]), last)
    assert model(small).hidden_states is None
    model.config.output_hidden_states = True
    assert len(model(small).hidden_states) == 3


def test_the_base_of_an_encoder_starts_a_pretraining(tmp_path):
    """Its weights become those of student and teacher; the heads are those of a new model."""
    encoder = HSSLModel(tiny_config())
    encoder.save_pretrained(tmp_path)
    model = AutoModelForPreTraining.from_pretrained(tmp_path)
    for name, value in encoder.base.state_dict().items():
        assert torch.equal(model.student.base.state_dict()[name], value)
        assert torch.equal(model.teacher.base.state_dict()[name], value)
    assert model(**tiny_views()).loss.isfinite()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_weights(name, dtype):
    """Forward, backward and the teacher's update; the encoder too."""
    model = MODELS[name](drop_path_rate=0.0)
    arguments = arguments_for(model, name)
    expected = model(**arguments).loss
    model = model.to(dtype)
    output = model(**arguments_for(model, name))
    torch.testing.assert_close(output.loss.float(), expected, rtol=0.05, atol=0.05)
    output.loss.backward()
    model.update_teacher(0.9)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    features = AutoModel.from_config(model.config, dtype=dtype)(arguments["pixel_values"][0].to(dtype)).pooler_output
    assert features.dtype == dtype and features.isfinite().all()


@pytest.mark.parametrize("objective", ["dino", "moco_v3"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_weights_of_other_objectives(objective, dtype):
    model = tiny_model(objective=objective, queue_size=16 if objective == "moco_v3" else 0).to(dtype)
    output = model(pixel_values=tiny_views()["pixel_values"].to(dtype))
    output.loss.backward()
    model.update_teacher(0.9)
    assert output.loss.isfinite() and all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize("name", MODELS)
def test_copies_and_pickles_compute_the_same(name):
    model = MODELS[name]()
    arguments = arguments_for(model, name)
    results = []
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.manual_seed(0)
        results.append(each(**arguments).loss)
        assert not any(p.requires_grad for p in (each.teacher.parameters() if each.teacher is not None else ()))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", MODELS)
def test_loading_leaves_nothing_uninitialized(tmp_path, name):
    """At another image size, in another precision, on a device map: what does not fit is that of a new model."""
    model = moved(MODELS[name]())
    model.save_pretrained(tmp_path)
    where = {"dtype": torch.bfloat16, "device_map": "cpu", "image_size": 48}
    loaded, info = type(model).from_pretrained(tmp_path, ignore_mismatched_sizes=True, output_loading_info=True, **where)
    assert info["mismatched_keys"] and not info["missing_keys"] and loaded.dtype == torch.bfloat16
    fresh, changed = type(model)(loaded.config).state_dict(), {key for key, *_ in info["mismatched_keys"]}
    for key, value in loaded.state_dict().items():
        if key not in changed:
            torch.testing.assert_close(value, model.state_dict()[key].to(value.dtype), rtol=0, atol=0)
        elif not key.startswith("teacher."):
            assert value.isfinite().all() and value.float().std() < 2 * fresh[key].float().std() + 1e-6, key
        else:
            assert torch.equal(value, loaded.state_dict()[key.replace("teacher", "student", 1)])
    encoder, info = AutoModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True, output_loading_info=True, **where)
    assert {key for key, *_ in info["mismatched_keys"]} == {"base.model.pos_embed"} and encoder.dtype == torch.bfloat16
    assert encoder.base.model.pos_embed.float().abs().max() <= 1


def test_lost_buffers_of_the_teacher_are_those_of_the_student(tmp_path):
    model = moved(BASES["resnet18"]())
    with torch.no_grad():
        model.student.base.model.bn1.running_mean.fill_(3.0)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    kept = {key: value for key, value in state.items() if not key.startswith("teacher.")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert (loaded.teacher.base.model.bn1.running_mean == 3.0).all()


@pytest.mark.parametrize("name", MODELS)
def test_flags_are_true(name):
    model = MODELS[name]()
    assert model.main_input_name == "pixel_values" and model._supports_sdpa and model.supports_gradient_checkpointing
    assert model._no_split_modules == set(repeated_blocks(model.student)) >= {"CheckpointedBlock"}
    assert model.config._attn_implementation == "sdpa" and model.student.base.model.blocks[0].attn.fused_attn
    arguments = arguments_for(model, name)
    model.eval()
    fused = model(**arguments).loss
    model.set_attn_implementation("eager")
    assert not any(getattr(module, "fused_attn", False) for module in model.modules())
    torch.testing.assert_close(model(**arguments).loss, fused)
    model.set_attn_implementation("sdpa")
    assert model.student.base.model.blocks[0].attn.fused_attn
    with pytest.raises(ValueError, match=r"[Ff]lash"):
        model.set_attn_implementation("flash_attention_2")


def test_attention_of_swin_is_what_the_configuration_names():
    model, views = BASES["swin"](), tiny_views(size=64, local=0, grid=None)
    attention = [module for module in model.modules() if hasattr(module, "fused_attn")]
    assert model.config._attn_implementation == "sdpa" and attention and all(module.fused_attn for module in attention)
    model.eval()
    fused = model(**views).loss
    model.set_attn_implementation("eager")
    assert not any(module.fused_attn for module in attention)
    torch.testing.assert_close(model(**views).loss, fused)


def test_attention_is_chosen_when_a_model_is_loaded(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    for auto in (AutoModel, AutoModelForPreTraining):
        model = auto.from_pretrained(tmp_path, attn_implementation="eager")
        assert not any(getattr(module, "fused_attn", False) for module in model.modules())


def test_sizes_of_shards(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    loaded = type(model).from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("encoder", [False, True])
def test_gradient_checkpointing_is_honored_or_refused(encoder):
    model = HSSLModel(tiny_config()) if encoder else tiny_model()
    base = model.base if encoder else model.student.base
    enable = checkpointing(model, "enable")
    assert not checkpointing(model, "is")
    enable({"use_reentrant": False})
    assert checkpointing(model, "is") and base.model.grad_checkpointing
    checkpointing(model, "disable")()
    assert not checkpointing(model, "is") and not base.model.grad_checkpointing
    refused = [(({"use_reentrant": True},), {}), ((), {"every_n_layers": 2}), ((), {"offload": True})]
    for values, options in refused:
        if options.keys() <= inspect.signature(enable).parameters.keys():
            with pytest.raises(ValueError, match="timm checkpoints every block, with use_reentrant=False"):
                enable(*values, **options)
            assert not checkpointing(model, "is")
    model._set_gradient_checkpointing(True, checkpoint)  # as transformers passes it without arguments
    assert checkpointing(model, "is")


def test_checkpointing_changes_no_gradient_of_an_encoder():
    gradients = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = HSSLModel(tiny_config(drop_path_rate=0.0)).train()
        if enabled:
            checkpointing(model, "enable")()
        model(tiny_views()["pixel_values"][0]).pooler_output.square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # read by torch._dynamo
@pytest.mark.parametrize("name", [*MODELS, "encoder"])
def test_compiled_models_compute_the_same(name):
    """The encoder by the default compiler; models with a teacher, whose compilation takes minutes, as traced graphs."""
    if name == "encoder":
        model, arguments = HSSLModel(tiny_config()).eval(), {"pixel_values": tiny_views()["pixel_values"][0]}
        expected = model(**arguments).pooler_output
        torch.testing.assert_close(torch.compile(model)(**arguments).pooler_output, expected, atol=1e-4, rtol=1e-4)
        return
    model = MODELS[name](drop_path_rate=0.0)
    arguments = arguments_for(model, name)
    expected = copy.deepcopy(model)(**arguments).loss
    loss = torch.compile(model, backend="aot_eager")(**arguments).loss
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)
