"""Starting from other weights: a full model, a stock backbone, a timm one; and weights that do not fit."""

import pytest
import torch

from hssl_hf.pretraining.initialization import load_initial_weights
from hssl_hf.publish import parity
from hssl_hf.publish.export import export_backbone, export_model
from tests.conftest import MAE, tiny_model, tiny_siamese


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    monkeypatch.setattr(parity, "compare", lambda *_: {})


def with_other_teacher(model):
    """A model whose teacher differs from the student."""
    with torch.no_grad():
        for p in model.teacher.parameters() if model.teacher is not None else ():
            p.add_(0.01)
    return model


def test_full_model_gives_student_teacher_heads_and_centers(tmp_path):
    source, model = with_other_teacher(tiny_model()), tiny_model()
    export_model(source, tmp_path / "full")
    assert load_initial_weights(model, str(tmp_path / "full")) is False
    loaded, expected = model.state_dict(), source.state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert not any(p.requires_grad for p in model.teacher.parameters())


@pytest.mark.parametrize("kind", ["main", "timm"])
@pytest.mark.parametrize("make", [tiny_model, tiny_siamese, lambda: tiny_siamese(**MAE)], ids=["hssl", "siamese_im", "mae"])
def test_backbone_gives_the_base_to_student_and_teacher(tmp_path, kind, make):
    source, model = with_other_teacher(make()), make()
    heads = {name: value.clone() for name, value in model.state_dict().items() if "base." not in name}
    export_backbone(source, tmp_path / "base", kind=kind)
    assert load_initial_weights(model, str(tmp_path / "base")) is True
    kept = source.get_network().base.timm_state_dict()
    networks = [model.student] if model.teacher is None else [model.student, model.teacher]
    for network in networks:
        loaded = network.base.timm_state_dict()
        assert all(torch.equal(loaded[name], kept[name]) for name in kept)
    after = model.state_dict()
    students = [name for name in heads if name.startswith("student.")]
    assert students and all(torch.equal(after[name], heads[name]) for name in students)


@pytest.mark.parametrize("kind", ["main", "timm"])
@pytest.mark.parametrize(
    ("backbone", "kwargs", "size"),
    [
        ("resnet18", {}, 64),
        ("convnext_atto", {"depths": (1, 1, 1, 1)}, 64),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, 224),
        ("poolformer_s12", {}, 64),
    ],
)
def test_other_architectures_start_from_stock_models(tmp_path, kind, backbone, kwargs, size):
    def make():
        return tiny_model(backbone=backbone, backbone_kwargs=kwargs, image_size=size, objective="dino", auxiliary="resnet")

    source, model = with_other_teacher(make()), make()
    export_backbone(source, tmp_path / "base", kind=kind)
    assert load_initial_weights(model, str(tmp_path / "base")) is True
    kept, loaded = source.teacher.base.timm_state_dict(), model.student.base.timm_state_dict()
    assert all(torch.equal(loaded[name], kept[name]) for name in kept)


def test_weights_that_do_not_fit_are_refused_with_their_shapes(tmp_path):
    export_backbone(tiny_model(), tmp_path / "base")
    export_model(tiny_model(), tmp_path / "full")
    with pytest.raises(
        ValueError, match=r"(?s)does not fit the base.*\n  patch_embed.proj.weight: expected .*4, 4.*got .*8, 8"
    ):
        load_initial_weights(
            tiny_model(backbone_kwargs={"patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 2}), str(tmp_path / "base")
        )
    with pytest.raises(ValueError, match=r"does not fit student, teacher and heads.*\n  missing: student.auxiliary"):
        load_initial_weights(tiny_model(auxiliary="resnet"), str(tmp_path / "full"))
    with pytest.raises(ValueError, match="is neither a folder nor a Hub repository with a model"):
        load_initial_weights(tiny_model(), str(tmp_path / "nothing"))
