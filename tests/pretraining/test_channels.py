"""Gray and multi-band images from the files to the export: training, probe, figures, export, evaluation, replay."""

import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from timm.models import adapt_input_conv
from transformers import AutoImageProcessor, AutoModel

from hssl_hf.cli import main as cli
from hssl_hf.config.recipe import load_recipe
from hssl_hf.data.views import collate
from hssl_hf.evaluation.encoder import load_encoder
from hssl_hf.evaluation.probe import ProbeConfig
from hssl_hf.pretraining.initialization import load_initial_weights
from hssl_hf.pretraining.replay import replay
from hssl_hf.pretraining.setup import build_model
from hssl_hf.pretraining.step_cost import _step
from hssl_hf.pretraining.step_memory import random_samples
from hssl_hf.publish.export import export_backbone, export_model
from hssl_hf.runs.metric_logger import read_log
from tests.conftest import MAE, ROOT, SAMPLE, TINY_VIT, tiny_model, tiny_siamese
from tests.data.test_decode import encoded, tiff_of_unspecified_band
from tests.launches import settings_of

QUICKSTART = ROOT / "training" / "recipes" / "quickstart.yaml"
COLORLESS = ["views.jitter.saturation=0", "views.jitter.hue=0", "views.gray_probability=0"]
FOUR = ["views.mean=[0.4, 0.5, 0.5, 0.6]", "views.std=[0.2, 0.2, 0.3, 0.3]", *COLORLESS]


def channels(number: int) -> list[str]:
    return ["optim.epochs=0.0064", f"model.backbone_kwargs.in_chans={number}"]


@pytest.fixture
def bands(tmp_path):
    """A dataset of 120 images of four bands: PNG, TIFF with alpha, and TIFF with an unspecified fourth band."""
    generator, rows = np.random.default_rng(0), []
    for number in range(120):
        array = generator.integers(0, 256, (32, 36, 4)).astype(np.uint8) // (1 + number % 2)
        image = Image.fromarray(array)
        rows.append([encoded(image, "PNG"), encoded(image, "TIFF"), tiff_of_unspecified_band(array)][number % 3])
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    columns = {"image": [{"bytes": row, "path": None} for row in rows], "label": [number % 2 for number in range(120)]}
    (tmp_path / "bands").mkdir()
    for split in ("train", "test"):
        datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / "bands" / f"{split}-00000-of-00001.parquet")
    return tmp_path / "bands"


def test_gray_images_from_their_files_to_the_evaluation(pretrain, tmp_path, capsys):
    """The embedded images are gray. The export is a stock model of one channel, which `hssl-hf evaluate` reads."""
    probe = [f"probe.path={SAMPLE}", "probe.train_images=100", "probe.test_images=40"]
    assert pretrain(*channels(1), *probe) == 0
    folder = tmp_path / "run"
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [record["n"] for record in records] == [40, 40, 40]
    model, report = AutoModel.from_pretrained(folder / "export", output_loading_info=True)
    assert not any(report.values()) and model.config.num_channels == 1
    processor = AutoImageProcessor.from_pretrained(folder / "export")
    assert (*processor.image_mean, *processor.image_std, processor.do_convert_rgb) == (0.449, 0.226, False)
    pixels = processor(Image.new("L", (40, 50), 255), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, torch.full((1, 1, 28, 28), (1 - 0.449) / 0.226))
    parity = (folder / "export" / "README.md").read_text()
    assert 'processor(Image.open("image.png").convert("L"), return_tensors="pt")' in parity and "pipeline |" not in parity
    assert {path.name for path in (folder / "figures").iterdir()} >= {"views.png", "components.png", "neighbors.png"}
    images = [f"data.path={SAMPLE}", "data.train_images=100", "data.test_images=40"]
    capsys.readouterr()
    assert cli.main(["evaluate", str(folder / "export"), "knn", *images]) == 0
    evaluated = f"k-NN k=20   top1  {records[0]['value']:.2f} %"
    assert evaluated in capsys.readouterr().out


@pytest.mark.parametrize("method", ["mae", *(pytest.param(name, marks=pytest.mark.slow) for name in ("hssl", "siamese_im"))])
def test_four_bands_from_their_files_to_the_export(method, pretrain, tmp_path, bands):
    arguments = [*FOUR, f"data.path={bands}", f"probe.path={bands}", "probe.test_split=test", "optim.epochs=0.4"]
    assert pretrain(*channels(4), *arguments, method=method) == 0
    folder = tmp_path / "run"
    assert [line["step"] for line in read_log(folder / "log.jsonl") if "loss" in line] == [1, 2, 3]
    model, report = AutoModel.from_pretrained(folder / "export", output_loading_info=True)
    assert not any(report.values()) and model.config.num_channels == 4
    processor = AutoImageProcessor.from_pretrained(folder / "export")
    image = torch.randint(0, 256, (4, 40, 40), dtype=torch.uint8)
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, processor(Image.fromarray(image.permute(1, 2, 0).numpy()), return_tensors="pt")["pixel_values"])
    assert model(pixels, interpolate_pos_encoding=True).last_hidden_state.isfinite().all()


def test_images_of_other_bands_end_the_run_with_a_name(pretrain, tmp_path, bands, capsys):
    assert pretrain(*channels(1), f"data.path={bands}") == 2
    message = capsys.readouterr().err
    assert "100 of 100 images cannot be decoded" in message and "expected images of 1 bands, got one of 4 (RGBA)" in message
    assert "the last one is" in message and "model.backbone_kwargs.in_chans" in message
    with pytest.raises(ValueError, match=r"(?s)has no images to evaluate on; the last one cannot be decoded: expected images"):
        export = export_backbone(tiny_model(backbone_kwargs={**TINY_VIT, "in_chans": 1}), tmp_path / "gray")
        list(ProbeConfig(path=str(bands)).splits(load_encoder(export)[1])[0])


def test_a_step_on_gray_images_is_replayed(pretrain, tmp_path):
    assert pretrain(*channels(1), "optim.base_learning_rate=1e38", "optim.max_grad_norm=null", "optim.warmup_epochs=0") == 2
    (capture,) = (tmp_path / "run" / "captures").iterdir()
    (report,) = replay(capture)
    assert report.not_finite


def test_steps_are_estimated_with_the_channels_of_the_recipe():
    recipe = load_recipe(QUICKSTART, [*settings_of("hssl"), "model.backbone_kwargs.in_chans=4", *FOUR])
    model = build_model(recipe)
    samples = random_samples(recipe, model, 2)
    assert collate(samples).pixel_values.shape[2] == 4
    _step(model, recipe, samples)


def changed(channels: int, **kwargs):
    """A tiny model for images of some channels, other than the one whose weights are loaded."""
    return tiny_model(seed=1, backbone_kwargs={**TINY_VIT, "in_chans": channels}, **kwargs)


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("kind", ["main", "timm", "training"])
def test_weights_for_three_channels_are_adapted_by_the_rule_of_timm(channels, kind, tmp_path, unchecked):
    """Summed for one channel; the other weights stay as they are, in student and teacher."""
    source, model = tiny_model(), changed(channels)
    write = export_model if kind == "training" else lambda *arguments: export_backbone(*arguments, kind=kind)
    assert load_initial_weights(model, str(write(source, tmp_path / "source")))[0] is (kind != "training")
    rgb, name = source.teacher.base.timm_state_dict(), "patch_embed.proj.weight"
    for network in (model.student, model.teacher):
        state = network.base.timm_state_dict()
        assert torch.equal(state.pop(name), adapt_input_conv(channels, rgb[name]))
        assert all(torch.equal(value, rgb[key]) for key, value in state.items())
    gray = torch.randn(2, 1, 32, 32)
    if channels == 1:
        actual, expected = model.eval().encode(gray).cls, source.eval().encode(gray.expand(-1, 3, -1, -1)).cls
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("backbone", "conv"), [("resnet18", "conv1"), ("convnext_atto", "stem.0")])
def test_first_convolutions_of_other_architectures_are_adapted(backbone, conv, tmp_path, unchecked):
    arguments = {"backbone": backbone, "image_size": 64, "objective": "dino", "auxiliary": "resnet"}
    source = tiny_model(**arguments, backbone_kwargs={})
    model = tiny_model(**arguments, backbone_kwargs={"in_chans": 4})
    load_initial_weights(model, str(export_backbone(source, tmp_path / "source")))
    rgb, state = (network.teacher.base.timm_state_dict()[f"{conv}.weight"] for network in (source, model))
    assert torch.equal(state, adapt_input_conv(4, rgb))


def test_weights_that_cannot_be_adapted_are_refused(tmp_path, unchecked):
    """Other numbers of channels than three have no order to start from, and predicted pixels are as many as the channels."""
    gray = export_backbone(changed(1), tmp_path / "gray")
    with pytest.raises(ValueError, match=r"patch_embed.proj.weight: expected \(64, 3, 8, 8\), got \(64, 1, 8, 8\)"):
        load_initial_weights(tiny_model(), str(gray))
    full = export_model(tiny_siamese(**MAE), tmp_path / "full")
    with pytest.raises(ValueError, match=r"student.decoder.prediction.weight: expected \(256, 32\), got \(192, 32\)"):
        load_initial_weights(tiny_siamese(**MAE, backbone_kwargs={**TINY_VIT, "in_chans": 4}), str(full))


def test_a_parallel_network_has_the_channels_of_the_base():
    model = changed(4, objective="dino", auxiliary="resnet18", auxiliary_connection="parallel")
    assert model.student.auxiliary(torch.randn(2, 4, 32, 32)).cls.shape == (2, 512)
