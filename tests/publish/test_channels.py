"""Exports of models for gray and multi-band images, their image processors, cards and figures."""

import json

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from transformers import AutoModel

from hssl_hf.data.augmentation import Augmentation, ViewConfig
from hssl_hf.data.channels import ChannelsError
from hssl_hf.data.views import collate
from hssl_hf.evaluation.encoder import load_encoder, num_channels, raw_pixel_encoder
from hssl_hf.evaluation.features import Representation
from hssl_hf.publish import parity
from hssl_hf.publish.export import ExportError, export_backbone
from hssl_hf.publish.hub import push_model
from hssl_hf.publish.image_processor import image_processor
from hssl_hf.publish.to_transformers import to_transformers
from hssl_hf.visualization import figures
from tests.conftest import TINY_VIT, tiny_model, tiny_siamese
from tests.hub_server.server import TOKEN
from tests.publish.test_export import OTHERS, run_snippet


def model_for(channels: int, backbone: str | None = None, make=tiny_model):
    if backbone is None:
        return make(backbone_kwargs={**TINY_VIT, "in_chans": channels}).eval()
    kwargs, size, _ = OTHERS[backbone]
    kwargs = {**kwargs, "in_chans": channels}
    arguments = {"backbone": backbone, "image_size": size, "objective": "dino", "auxiliary": "resnet"}
    return tiny_model(**arguments, backbone_kwargs=kwargs).eval()


def processor_for(channels: int, size: int = 32):
    return image_processor(size, mean=(0.1, 0.2, 0.3, 0.4)[:channels], std=(0.2, 0.3, 0.4, 0.5)[:channels])


@pytest.mark.parametrize("channels", [1, 4])
def test_exports_of_vision_transformers_compute_the_same(channels, tmp_path, forked_parity):
    """The check in another process covers transformers, timm and the processor; the pipeline converts to RGB."""
    model, processor = model_for(channels), processor_for(channels)
    main = export_backbone(model, tmp_path / "main", processor=processor)
    names = set(yaml.safe_load((main / "facts.yaml").read_text())["parity"])
    assert {"processor", "size_32/pooler_output", "size_48/last_hidden_state"} <= names and "pipeline" not in names
    exported = export_backbone(model, tmp_path / "timm", processor=processor, kind="timm")
    names = set(yaml.safe_load((exported / "facts.yaml").read_text())["parity"])
    assert "size_32/timm" in names and ("processor" in names) == (channels == 1)
    config = json.loads((exported / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [channels, 32, 32] and config["model_args"]["in_chans"] == channels


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 4])
def test_vision_transformers_in_onnx(channels, tmp_path):
    folder = export_backbone(model_for(channels), tmp_path / "main", processor=processor_for(channels), onnx=True)
    names = yaml.safe_load((folder / "facts.yaml").read_text())["parity"]
    assert {"size_32/onnx_pooler_output", "size_48/onnx_last_hidden_state"} <= set(names)


FAST = (("resnet18", 4), ("convnext_atto", 1), ("swin_tiny_patch4_window7_224", 4), ("poolformer_s12", 4))
PAIRS = [(name, channels) for name in OTHERS if name != "resnet50" for channels in (1, 4)]


@pytest.mark.parametrize(
    ("backbone", "channels"), [pair if pair in FAST else pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS]
)
def test_other_architectures_are_stock_models(backbone, channels, tmp_path, unchecked):
    model = model_for(channels, backbone)
    _, size, class_name = OTHERS[backbone]
    pixels = torch.randn(2, channels, size, size)
    with torch.no_grad():
        expected = model.encode(pixels).cls
    folder = export_backbone(model, tmp_path / "export", processor=processor_for(channels, size))
    stock, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(stock).__name__ == class_name and not any(report.values())
    encoder, processor = load_encoder(folder)
    torch.testing.assert_close(encoder(pixels)[0], expected, atol=1e-5, rtol=1e-4)
    image = torch.randint(0, 256, (channels, 70, 80), dtype=torch.uint8)
    assert num_channels(processor) == channels
    prepared = processor([image, image], return_tensors="pt")["pixel_values"]
    assert encoder(prepared)[0].shape == (2, model.teacher.base.width)
    assert raw_pixel_encoder(prepared)[0].shape == (2, channels * size**2)
    export_backbone(model, tmp_path / "timm", kind="timm", processor=processor_for(channels, size))
    loaded = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    torch.testing.assert_close(loaded(pixels), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["main", "timm"])
@pytest.mark.parametrize(("backbone", "channels"), PAIRS)
def test_other_architectures_compute_the_same_in_a_fresh_process(backbone, kind, channels, tmp_path):
    model, processor = model_for(channels, backbone), processor_for(channels, OTHERS[backbone][1])
    folder = export_backbone(model, tmp_path / "export", kind=kind, onnx=kind == "main", processor=processor)
    names = {name.split("/")[-1] for name in yaml.safe_load((folder / "facts.yaml").read_text())["parity"]}
    assert "pooler_output" in names and ("onnx_pooler_output" in names) == (kind == "main")


def test_different_outputs_of_a_gray_export_are_refused(tmp_path, monkeypatch, forked_parity):
    from hssl_hf.publish import export

    def damaged(base, image_size):
        vit = to_transformers(base, image_size)
        vit.embeddings.patch_embeddings.projection.weight.data[0, 0] += 1
        return vit

    monkeypatch.setattr(export, "to_transformers", damaged)
    with pytest.raises(ExportError, match="differs from the trained model: size_32"):
        export_backbone(model_for(1), tmp_path / "export")


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_processors_take_tensors_and_pillow_images(channels, tmp_path):
    processor_for(channels).save_pretrained(tmp_path)
    processor = type(processor_for(channels)).from_pretrained(tmp_path)
    image = torch.randint(0, 256, (channels, 40, 50), dtype=torch.uint8)
    pillow = Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy())
    pixels = [processor(x, return_tensors="pt")["pixel_values"] for x in (image, [image], pillow)]
    assert pixels[0].shape == (1, channels, 32, 32) and all(torch.equal(pixels[0], other) for other in pixels)
    if channels == 1:  # its one mean is that of every band, and the model refuses the result
        return
    with pytest.raises((ValueError, RuntimeError)):
        processor(torch.zeros(3, 40, 50, dtype=torch.uint8), return_tensors="pt")


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("make", [tiny_model, tiny_siamese])
def test_code_of_the_card_computes_the_features(make, channels, tmp_path, unchecked):
    model = model_for(channels, make=make)
    folder = export_backbone(model, tmp_path / "export", processor=processor_for(channels))
    pixels = np.arange(40 * 40 * channels, dtype=np.uint32) % 251
    Image.fromarray(pixels.astype(np.uint8).reshape(40, 40, channels).squeeze()).save(tmp_path / "image.png")
    scope = run_snippet((folder / "README.md").read_text(), folder, tmp_path / "image.png")
    assert scope["inputs"]["pixel_values"].shape == (1, channels, 32, 32) and scope["features"].shape == (1, 64)
    if make is tiny_model:
        torch.testing.assert_close(scope["features"], model.encode(scope["inputs"]["pixel_values"]).cls, atol=1e-5, rtol=1e-4)


def test_without_statistics_four_channels_are_refused(tmp_path, unchecked):
    with pytest.raises(ChannelsError, match=r"4 channels have no default mean .* processor=image_processor"):
        export_backbone(model_for(4), tmp_path / "export")
    with pytest.raises(ChannelsError, match="4 channels have no default mean"):
        push_model(model_for(4), "user/name", token=TOKEN)


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (4, [0, 1, 2])])
def test_figures_show_gray_or_the_first_three_channels(channels, shown, tmp_path, monkeypatch, unchecked):
    processor, generator = processor_for(channels), torch.Generator().manual_seed(0)
    images = [(torch.randint(0, 256, (channels, 37, 37), generator=generator, dtype=torch.uint8), n % 2) for n in range(12)]
    drawn = {}
    monkeypatch.setattr(figures, "_grid", lambda rows, path: drawn.update({path.name: rows}))
    export = export_backbone(model_for(channels), tmp_path / "export", processor=processor)
    figures.draw_export(export, processor, images, images, tmp_path, Representation())
    assert drawn.keys() == {"components.png", "attention.png", "neighbors.png"}
    expected = processor([image for image, _ in images[:8]], return_tensors="pt")["pixel_values"].permute(0, 2, 3, 1)
    expected = (expected * torch.tensor(processor.image_std) + torch.tensor(processor.image_mean)).clamp(0, 1)
    np.testing.assert_allclose(drawn["neighbors.png"]["image"], expected[..., shown], atol=1e-6)
    config = ViewConfig(32, num_local_crops=0, mean=processor.image_mean, std=processor.image_std)
    views = collate([{**Augmentation(config)(image, 0, 0), "corrupt": []} for image, _ in images])
    normalized = (views.pixel_values / 255 - torch.tensor(config.mean).view(-1, 1, 1)) / torch.tensor(config.std).view(-1, 1, 1)
    figures.draw_views(type(views)(**{**vars(views), "pixel_values": normalized}), config, tmp_path / "views.png")
    np.testing.assert_allclose(
        drawn["views.png"]["global view 1"], views.pixel_values[0, :8].permute(0, 2, 3, 1)[..., shown] / 255, atol=1e-6
    )


def test_parity_images_have_the_channels_of_the_model():
    assert parity._test_image(1).mode == "L" and parity._test_image(3).mode == "RGB"
    assert parity._test_image(4).shape == (4, 120, 160)
