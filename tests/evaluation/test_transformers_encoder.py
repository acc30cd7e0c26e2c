"""Encoders of every type of model in transformers, against direct calls of randomly initialized models."""

import copy

import pytest
import torch
import transformers
from torch import Tensor, nn

from hssl_hf.evaluation.encoder import load_encoder, untrained
from hssl_hf.evaluation.transformers_encoder import HIERARCHICAL, IMAGE_TOWERS, VISION_TRANSFORMERS
from hssl_hf.publish.image_processor import image_processor
from tests.faults import refused

SIZE, PATCH = 32, 8
TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}
VIT = {**TINY, "image_size": SIZE, "patch_size": PATCH}
DINOV2 = {**{key: value for key, value in VIT.items() if key != "intermediate_size"}, "mlp_ratio": 2}
STAGES = {"depths": [1, 2], "num_stages": 2}
MAPS = {**STAGES, "hidden_sizes": [8, 16], "image_size": SIZE}
RELATIVE = {"use_relative_position_bias": True, "layer_scale_init_value": 0.5}


def a_model(class_name: str, arguments: dict, **kwargs) -> transformers.PreTrainedModel:
    """A model with random weights, also where its library starts from zeros or ones."""
    model_class = getattr(transformers, class_name)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**arguments), **kwargs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def saved(model: transformers.PreTrainedModel, folder, size: int = SIZE):
    model.save_pretrained(folder)
    image_processor(size).save_pretrained(folder)
    return folder


def images(height: int = SIZE, width: int = SIZE) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def class_token(output, _model) -> Tensor:
    return output.last_hidden_state[:, 0]


def pooler(output, _model) -> Tensor:
    return output.pooler_output


def mean(output, _model) -> Tensor:
    return output.last_hidden_state.mean(1)


# model -> type, class, arguments, tokens in front of the patches, representation of an image, final norm,
# arguments of a forward pass that interpolates positions
INTERPOLATE = {"interpolate_pos_encoding": True}
TOKENS = {
    "vit": ("vit", "ViTModel", VIT, 1, class_token, "layernorm", INTERPOLATE),
    "deit": ("deit", "DeiTModel", VIT, 2, class_token, "layernorm", INTERPOLATE),
    "msn": ("vit_msn", "ViTMSNModel", VIT, 1, class_token, "layernorm", INTERPOLATE),
    "mae": ("vit_mae", "ViTMAEModel", {**VIT, "mask_ratio": 0.0}, 1, class_token, "layernorm", INTERPOLATE),
    "ijepa": ("ijepa", "IJepaModel", VIT, 0, mean, "layernorm", INTERPOLATE),
    "dinov2": ("dinov2", "Dinov2Model", DINOV2, 1, pooler, "layernorm", {}),
    "registers": (
        "dinov2_with_registers",
        "Dinov2WithRegistersModel",
        {**DINOV2, "num_register_tokens": 3},
        4,
        pooler,
        "layernorm",
        {},
    ),
    "dinov3": ("dinov3_vit", "DINOv3ViTModel", {**VIT, "num_register_tokens": 2}, 3, pooler, "norm", {}),
    "beit": ("beit", "BeitModel", {**VIT, **RELATIVE, "use_mean_pooling": True}, 1, pooler, "layernorm", {}),
    "beit_cls": ("beit", "BeitModel", {**VIT, **RELATIVE, "use_mean_pooling": False}, 1, pooler, "layernorm", {}),
    "beit_shared": (
        "beit",
        "BeitModel",
        {**VIT, "use_shared_relative_position_bias": True, "use_absolute_position_embeddings": True},
        1,
        pooler,
        "layernorm",
        {},
    ),
    "data2vec": ("data2vec-vision", "Data2VecVisionModel", {**VIT, **RELATIVE}, 1, pooler, "layernorm", {}),
    "clip": ("clip_vision_model", "CLIPVisionModel", VIT, 1, pooler, "post_layernorm", INTERPOLATE),
    "siglip": ("siglip_vision_model", "SiglipVisionModel", VIT, 0, pooler, "post_layernorm", INTERPOLATE),
    "siglip_headless": (
        "siglip_vision_model",
        "SiglipVisionModel",
        {**VIT, "vision_use_head": False},
        0,
        mean,
        "post_layernorm",
        INTERPOLATE,
    ),
}
MEAN_POOLED = ("ijepa", "beit", "beit_shared", "data2vec", "siglip", "siglip_headless")


@pytest.mark.parametrize("kind", TOKENS)
def test_vision_transformers(kind, tmp_path):
    """Both outputs of the end and of blocks, at the model's own size and at another that is not square."""
    model_type, class_name, arguments, prefix, representation, norm, interpolate = TOKENS[kind]
    assert model_type in VISION_TRANSFORMERS
    model = a_model(class_name, arguments, **({"add_pooling_layer": True} if kind == "data2vec" else {}))
    encoder, _ = load_encoder(saved(model, tmp_path))
    assert (encoder.num_blocks, encoder.width, encoder.stride, encoder.image_size) == (3, 32, PATCH, (SIZE, SIZE))
    for pixels, options in ((images(), {}), (images(40, 24), interpolate)):
        grid = tuple(side // PATCH for side in pixels.shape[-2:])
        if kind == "mae":
            options = {**options, "noise": torch.arange(grid[0] * grid[1]).float().expand(2, -1)}
        with torch.no_grad():
            output = model(pixels, output_hidden_states=True, **options)
            final_norm = model.get_submodule(norm)
            states = output.hidden_states[1:]
            cls, patches = encoder(pixels)
            assert patches.shape == (2, *grid, 32)
            torch.testing.assert_close(cls, representation(output, model))
            torch.testing.assert_close(patches.flatten(1, 2), final_norm(states[-1])[:, prefix:])
            if kind != "clip":  # whose last hidden state is not normalized
                torch.testing.assert_close(patches.flatten(1, 2), output.last_hidden_state[:, prefix:])
            normed = encoder.forward_intermediates(pixels, [-1, 0])
            plain = encoder.forward_intermediates(pixels, [-3, 2, 1], norm=False)
        torch.testing.assert_close(normed[0], (cls, patches))
        torch.testing.assert_close(normed[1][1].flatten(1, 2), final_norm(states[0])[:, prefix:])
        for number, (image_level, patch_level) in zip((0, 2, 1), plain, strict=True):
            tokens = states[number]
            expected = tokens[:, prefix:].mean(1) if kind in MEAN_POOLED else tokens[:, 0]
            torch.testing.assert_close(image_level, expected)
            torch.testing.assert_close(patch_level.flatten(1, 2), tokens[:, prefix:])


CONVNEXT = {**MAPS, "patch_size": 4, "layer_scale_init_value": 0.5}
SWIN = {"image_size": SIZE, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
RESNET = {"depths": [1, 2], "hidden_sizes": [8, 16], "embedding_size": 8, "layer_type": "basic"}
HIERARCHIES = {  # type -> class, arguments
    "convnext": ("ConvNextModel", CONVNEXT),
    "convnextv2": ("ConvNextV2Model", {**MAPS, "patch_size": 4}),
    "dinov3_convnext": ("DINOv3ConvNextModel", {"depths": [1, 2], "hidden_sizes": [8, 16], "image_size": SIZE}),
    "resnet": ("ResNetModel", RESNET),
    "swin": ("SwinModel", {**SWIN, "use_absolute_embeddings": True}),
    "swinv2": ("Swinv2Model", SWIN),
}


def stage_maps(kind: str, model: nn.Module, pixels: Tensor, **options) -> list[Tensor]:
    """(B, h, w, D) of the stages; those of Swin in front of the downsampling."""
    if "swin" in kind:
        embedded, size = model.embeddings(pixels, **options)
        flags = {"output_hidden_states": True, "output_hidden_states_before_downsampling": True}
        states = model.encoder(embedded, size, **flags).reshaped_hidden_states
    else:
        states = model(pixels, output_hidden_states=True).hidden_states
    return [state.permute(0, 2, 3, 1) for state in states[1:]]


@pytest.mark.parametrize("kind", HIERARCHIES)
def test_hierarchical_models(kind, tmp_path):
    assert HIERARCHIES.keys() == HIERARCHICAL.keys()
    model = a_model(*HIERARCHIES[kind])
    encoder, _ = load_encoder(saved(model, tmp_path))
    assert (encoder.num_blocks, encoder.widths, encoder.strides) == (2, (8, 16), (4, 8))
    for pixels, options in ((images(), {}), (images(48, 80), INTERPOLATE if kind == "swin" else {})):
        with torch.no_grad():
            expected = copy.deepcopy(model)(pixels, **options)  # Swin's classes keep the windows of a small image
            stages = stage_maps(kind, copy.deepcopy(model), pixels, **options)
        cls, patches = encoder(pixels)
        assert patches.shape == (2, pixels.shape[2] // 8, pixels.shape[3] // 8, 16)
        torch.testing.assert_close(cls, expected.pooler_output.flatten(1))
        last = expected.last_hidden_state
        if kind == "dinov3_convnext":
            last = last[:, 1:]
        torch.testing.assert_close(patches, last.permute(0, 2, 3, 1) if last.ndim == 4 else last.view_as(patches))
        torch.testing.assert_close(encoder.forward_intermediates(pixels, [-1])[0], (cls, patches))
        for norm in (True, False):
            first, second = encoder.forward_intermediates(pixels, [0, 1], norm)
            torch.testing.assert_close(first, (stages[0].mean((1, 2)), stages[0]))
            if not norm:
                torch.testing.assert_close(second, (stages[1].mean((1, 2)), stages[1]))


def test_windows_of_small_images_are_not_kept(tmp_path):
    """transformers' Swin computes a large image in another way after one whose last map is a single window."""
    model = a_model("SwinModel", SWIN)
    encoder, _ = load_encoder(saved(model, tmp_path))
    large = images(64, 64)
    before = encoder(large)
    encoder(images())
    torch.testing.assert_close(encoder(large), before, rtol=0, atol=0)
    with torch.no_grad():
        model(images())
        assert not torch.allclose(model(large).pooler_output, before[0], atol=1e-4)


def test_masked_autoencoders_keep_the_order_of_the_patches(tmp_path):
    """The encoder of an MAE is a ViT; transformers shuffles its patches even where it masks none."""
    model = a_model("ViTMAEModel", VIT)
    assert model.config.mask_ratio == 0.75
    vit = transformers.ViTModel(transformers.ViTConfig(**VIT), add_pooling_layer=False).eval()
    vit.load_state_dict(model.state_dict())
    encoder, _ = load_encoder(saved(model, tmp_path))
    for pixels in (images(), images(24, 40)):
        with torch.no_grad():
            tokens = vit(pixels, interpolate_pos_encoding=True).last_hidden_state
        cls, patches = encoder(pixels)
        torch.testing.assert_close(cls, tokens[:, 0])
        torch.testing.assert_close(patches.flatten(1, 2), tokens[:, 1:])
    torch.testing.assert_close(untrained(encoder, 0)(pixels), untrained(encoder, 0)(pixels), rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "class_name"), [("clip", "CLIPModel"), ("siglip", "SiglipModel")])
def test_image_towers_of_models_of_images_and_texts(kind, class_name, tmp_path):
    assert kind in IMAGE_TOWERS
    text = {**TINY, "vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1}
    model = a_model(class_name, {"text_config": text, "vision_config": VIT})
    encoder, _ = load_encoder(saved(model, tmp_path))
    with torch.no_grad():
        expected = model.vision_model(images())
    torch.testing.assert_close(encoder(images())[0], expected.pooler_output)
    assert encoder.network is not model and not any("text" in name for name, _ in encoder.named_parameters())


def test_a_model_trained_without_a_final_norm(tmp_path):
    model = a_model("ViTModel", {**VIT, "features": "hidden_states"})
    encoder, _ = load_encoder(saved(model, tmp_path))
    with torch.no_grad():
        state = model(images(), output_hidden_states=True).hidden_states[-1]
    cls, patches = encoder(images())
    torch.testing.assert_close((cls, patches.flatten(1, 2)), (state[:, 0], state[:, 1:]))
    torch.testing.assert_close(encoder.forward_intermediates(images(), [-1])[0][0], model.layernorm(state)[:, 0].detach())


def test_a_classifier_beside_the_backbone_is_left_out(tmp_path):
    model = a_model("ViTForImageClassification", {**VIT, "num_labels": 3})
    encoder, _ = load_encoder(saved(model, tmp_path))
    with torch.no_grad():
        expected = model.vit(images()).last_hidden_state[:, 0]
    torch.testing.assert_close(encoder(images())[0], expected)


def test_positions_of_images_that_are_not_square_are_not_interpolated(tmp_path):
    model = a_model("ViTModel", {**VIT, "image_size": [16, 64]})
    encoder, _ = load_encoder(saved(model, tmp_path))
    pixels = images(16, 64)
    with torch.no_grad():
        tokens = model(pixels).last_hidden_state
    torch.testing.assert_close(encoder(pixels)[1].flatten(1, 2), tokens[:, 1:])
    with refused("32 x 32", "square images only", "resize them to its own 16 x 64"):
        encoder(images())


@pytest.mark.fault("models that are no image encoders")
def test_images_that_are_smaller_than_a_window(tmp_path):
    encoder, _ = load_encoder(saved(a_model("SwinModel", SWIN), tmp_path))
    with refused(str(tmp_path), "16 x 16", "its own 32 x 32"):
        encoder(images(16, 16))
