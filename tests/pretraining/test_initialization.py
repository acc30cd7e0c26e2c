"""Starting from other weights: a full model, a stock backbone, a timm one; and weights that do not fit."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from hssl_hf.pretraining.initialization import load_initial_weights
from hssl_hf.publish import parity
from hssl_hf.publish.export import CardContext, export_backbone, export_model
from hssl_hf.publish.origin import Origin, as_plain
from tests.conftest import MAE, tiny_model, tiny_siamese
from tests.faults import refused


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
    assert load_initial_weights(model, str(tmp_path / "full"))[0] is False
    loaded, expected = model.state_dict(), source.state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert not any(p.requires_grad for p in model.teacher.parameters())


@pytest.mark.parametrize("kind", ["main", "timm"])
@pytest.mark.parametrize("make", [tiny_model, tiny_siamese, lambda: tiny_siamese(**MAE)], ids=["hssl", "siamese_im", "mae"])
def test_backbone_gives_the_base_to_student_and_teacher(tmp_path, kind, make):
    source, model = with_other_teacher(make()), make()
    heads = {name: value.clone() for name, value in model.state_dict().items() if "base." not in name}
    export_backbone(source, tmp_path / "base", kind=kind)
    assert load_initial_weights(model, str(tmp_path / "base"))[0] is True
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
    assert load_initial_weights(model, str(tmp_path / "base"))[0] is True
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


@pytest.mark.fault("files of others as initial weights")
def test_a_checkpoint_file_is_to_be_converted_first(tmp_path):
    """The conversion knows its license."""
    torch.save({}, tmp_path / "mae.pth")
    with refused("mae.pth", "is a file", "hssl-hf convert"):
        load_initial_weights(tiny_model(), str(tmp_path / "mae.pth"))


@pytest.mark.fault("damaged initial weights")
@pytest.mark.parametrize("kind", ["main", "training"])
@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda state, name: state.pop(name), "missing: {name}"),
        (lambda state, name: state[name].fill_(float("nan")), "not finite: {name}"),
        (lambda state, name: state.update({name: torch.ones(3)}), "of another shape: {name}"),
        (lambda state, _: state.update({"adapter.weight": torch.ones(3)}), "unknown: adapter.weight"),
        (lambda state, _: state.clear(), "missing"),
    ],
    ids=["missing", "no numbers", "shape", "unknown", "empty"],
)
def test_damaged_weights_are_refused_by_name(tmp_path, kind, spoil, word):
    if kind == "main":
        folder, name = export_backbone(tiny_model(), tmp_path / "base"), "layernorm.weight"
    else:
        folder, name = export_model(tiny_model(), tmp_path / "full"), "student.base.model.blocks.0.mlp.fc1.bias"
    state = load_file(folder / "model.safetensors")
    spoil(state, name)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with refused(str(folder), word.format(name=name)):
        load_initial_weights(tiny_model(), str(folder))


@pytest.mark.fault("damaged initial weights")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"\xff\xfe" * 20], ids=["empty", "deep", "bytes"])
def test_damaged_files_are_refused_by_the_folder(tmp_path, name, content):
    folder = export_model(tiny_model(), tmp_path / "full")
    (folder / name).write_bytes(content)
    with refused(str(folder), "init_from"):
        load_initial_weights(tiny_model(), str(folder))


NC = "cc-by-nc-4.0"


@pytest.mark.parametrize("kind", ["main", "timm", "training"])
def test_license_and_origin_of_an_export_survive_further_hops(tmp_path, kind):
    """A converted model, a model trained from it, and one trained from that: every card names the license."""

    def export(model, name: str, about: dict) -> str:
        context = CardContext(about)
        if kind == "training":
            export_model(model, tmp_path / name, context=context)
        else:
            export_backbone(model, tmp_path / name, kind=kind, context=context)
        return (tmp_path / name / "README.md").read_text()

    release = {"method": "iBOT", "file": "ibot.pth", "detected": True}
    card = export(tiny_model(license=NC), "converted", {"release": release})
    assert "license: cc-by-nc-4.0" in card and "as the layout of the file suggests" in card
    previous = "converted"
    for name in ("second", "third"):
        model = tiny_model()
        _, origin = load_initial_weights(model, str(tmp_path / previous))
        assert (origin.name, origin.license, origin.commit) == (previous, NC, None)
        assert (origin.release is not None) == (previous == "converted")
        card = export(model, name, {"origin": as_plain(origin)})
        assert f"license: {NC}" in card and f"started from the weights of `{previous}`" in card
        assert "**They are not for commercial use.**" in card
        assert ("a checkpoint of iBOT, as the layout" in card) == (previous == "converted")
        previous = name
    with refused("license: expected cc-by-nc-4.0", "forbids commercial use"):
        export(model, "relicensed", {"origin": as_plain(origin), "license": "apache-2.0"})


def test_an_unknown_license_stays_unknown(tmp_path):
    export_model(tiny_model(), tmp_path / "first")
    for before, name in (("first", "second"), ("second", "third")):
        _, origin = load_initial_weights(tiny_model(), str(tmp_path / before))
        assert origin == Origin(before)
        export_model(tiny_model(), tmp_path / name, context=CardContext({"origin": as_plain(origin)}))
        card = (tmp_path / name / "README.md").read_text()
        assert f"weights of `{before}`, whose license is **unknown**" in card and "\nlicense:" not in card


def test_base_model_is_that_of_the_local_card(tmp_path):
    export_backbone(tiny_model(), tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("---\nlicense: mit\nbase_model: user/before\n---\n")
    _, origin = load_initial_weights(tiny_model(), str(tmp_path / "base"))
    assert origin == Origin("base", license="mit", base_model=("user/before",))
