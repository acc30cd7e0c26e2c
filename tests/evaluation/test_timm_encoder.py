"""Encoders of timm's models, loaded by timm and through transformers, against direct calls."""

import pytest
import timm
import torch
from torch import Tensor

from hssl_hf.evaluation.encoder import load_encoder, num_channels, untrained
from tests.faults import refused

TINY = {"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 8, "img_size": 32}
MODELS = {  # architecture and arguments -> width, stride, image size
    "class token": ("vit_tiny_patch16_224", TINY),
    "class token and registers": ("vit_tiny_patch16_224", {**TINY, "reg_tokens": 2, "init_values": 0.5}),
    "mean": ("test_vit2", {**TINY, "init_values": 0.5}),
    "attention": ("test_vit3", {**TINY, "init_values": 0.5}),
    "beit": ("beitv2_base_patch16_224", TINY),
    "eva": ("eva02_tiny_patch14_224", TINY),
    "resnet": ("test_resnet", {}),
    "convnext": ("test_convnext", {"depths": (1, 1, 1, 1)}),
    "efficientnet": ("test_efficientnet", {}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2), "img_size": 64},
    ),
}
RESIZABLE = [name for name in MODELS if name != "beit"]


def a_model(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    name, arguments = MODELS[kind]
    model = timm.create_model(name, num_classes=3, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def saved(kind: str, folder):
    timm.models.save_for_hf(a_model(kind), folder, model_args=MODELS[kind][1], safe_serialization=True)
    return folder


def direct(folder, **arguments) -> torch.nn.Module:
    return timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0, **arguments).eval()


def images(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def maps_of(model: torch.nn.Module, pixels: Tensor, norm: bool) -> list[Tensor]:
    return [x.permute(0, 2, 3, 1) for x in model.forward_intermediates(pixels, norm=norm, intermediates_only=True)]


@pytest.mark.parametrize("wrapped", [False, True], ids=["timm", "transformers"])
@pytest.mark.parametrize("kind", MODELS)
def test_models_of_timm(kind, wrapped, tmp_path):
    name = saved(kind, tmp_path)
    encoder, processor = load_encoder(name if wrapped else f"timm:local-dir:{name}")
    model = direct(tmp_path)
    assert num_channels(processor) == 3
    assert encoder.num_blocks == len(model.feature_info) and encoder.width == encoder(images(*encoder.image_size))[1].shape[-1]
    sizes = [encoder.image_size, (64, 96)] if kind in RESIZABLE else [encoder.image_size]
    if any(hasattr(module, "dynamic_img_size") for module in model.modules()):
        model = direct(tmp_path, dynamic_img_size=True)
    for size in sizes:
        pixels = images(*size)
        with torch.no_grad():
            expected, maps, normed = model(pixels), maps_of(model, pixels, norm=False), maps_of(model, pixels, norm=True)
        cls, patches = encoder(pixels)
        torch.testing.assert_close(cls, expected)
        assert patches.shape[1:3] == (size[0] // encoder.stride, size[1] // encoder.stride)
        if kind != "efficientnet":  # which has a convolution behind its last stage
            torch.testing.assert_close(patches, normed[-1])
        torch.testing.assert_close(encoder.forward_intermediates(pixels, [-2, -1])[1], (cls, patches))
        outputs = encoder.forward_intermediates(pixels, [-1, 0], norm=False)
        for (image_level, patch_level), values in zip(outputs, (maps[-1], maps[0]), strict=True):
            torch.testing.assert_close(patch_level, values)
            if "class token" not in kind and kind != "beit":
                torch.testing.assert_close(image_level, values.mean((1, 2)))
        first = encoder.forward_intermediates(pixels, [0])[0]
        torch.testing.assert_close(first[1], normed[0])


def test_class_tokens_of_blocks(tmp_path):
    """As the tokens that pass through the blocks of the model."""
    kind = "class token and registers"
    encoder, _ = load_encoder(f"timm:local-dir:{saved(kind, tmp_path)}")
    model, tokens = direct(tmp_path), []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: tokens.append(output))
    with torch.no_grad():
        model(images(32, 32))
    for norm in (False, True):
        for (cls, patches), expected in zip(
            encoder.forward_intermediates(images(32, 32), [0, 1, 2], norm), tokens, strict=True
        ):
            expected = model.norm(expected).detach() if norm else expected
            torch.testing.assert_close((cls, patches.flatten(1, 2)), (expected[:, 0], expected[:, 3:]))


@pytest.mark.parametrize("name", ["timm:local-dir:{}", "{}"])
def test_untrained_models_have_the_initialization_of_timm(name, tmp_path):
    encoder, _ = load_encoder(name.format(saved("class token", tmp_path)))
    torch.manual_seed(7)
    expected = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY).eval()(images(32, 32)).detach()
    torch.testing.assert_close(untrained(encoder, 7)(images(32, 32))[0], expected)


@pytest.mark.fault("models that are no image encoders")
@pytest.mark.parametrize(
    "name", ["no_such_model", "vit_tiny_patch16_224.no_such_weights", "test_vit4", "test_vit", "hf-hub:no/repository"]
)
def test_models_without_weights_are_not_initialized_at_random(name):
    with refused(f"timm:{name}", "cannot be read", "with weights"):
        load_encoder(f"timm:{name}")


@pytest.mark.fault("models that are no image encoders")
def test_sizes_that_a_model_of_timm_does_not_take(tmp_path):
    encoder, _ = load_encoder(f"timm:local-dir:{saved('beit', tmp_path)}")
    with refused("48 x 48", "its own 32 x 32"):
        encoder(images(48, 48))


def test_revision_and_token_belong_to_the_name_and_the_environment():
    for arguments in ({"revision": "main"}, {"token": "hf_x"}):
        with refused("hf-hub:user/name@revision", "HF_TOKEN"):
            load_encoder("timm:vit_tiny_patch16_224", **arguments)
