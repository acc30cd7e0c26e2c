"""DINO, iBOT and HSSL checkpoints: our models compute the same as the official networks, and training continues."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from transformers import AutoModel

from hssl_hf import HSSLForPreTraining
from hssl_hf.cli.main import main
from hssl_hf.convert import ConversionError, convert_checkpoint, from_distillation, read_checkpoint
from hssl_hf.modules.projection_heads import prototype_logits
from hssl_hf.publish.citations import CITATIONS
from tests.conftest import tiny_views
from tests.convert.official import SIZE, WIDTH, distillation, logits, under, vit

METHODS = ["dino", "ibot", "hssl"]


@pytest.fixture(params=METHODS)
def official(request, tmp_path):
    content, networks = distillation(request.param)
    torch.save(content, tmp_path / "checkpoint.pth")
    return request.param, content, networks, tmp_path / "checkpoint.pth"


def test_outputs_equal_those_of_the_official_networks(official):
    method, content, networks, path = official
    model = from_distillation(read_checkpoint(path), method, num_heads=1).eval()
    pixels = torch.randn(3, 3, SIZE, SIZE)
    for name, modules in networks.items():
        network = getattr(model, name)
        features = []
        modules["vit"].norm.register_forward_pre_hook(lambda _, arguments, into=features: into.append(arguments[0]))
        tokens = modules["vit"].forward_features(pixels)
        branches = network(pixels[None])
        ours = torch.cat([branches.base.cls[0][:, None], branches.base.patches[0].flatten(1, 2)], dim=1)
        torch.testing.assert_close(ours, tokens, atol=1e-4, rtol=1e-4)
        predicted = prototype_logits(network.heads.project("base", ours), network.heads.prototypes())
        torch.testing.assert_close(predicted, logits(modules["mlp"], modules["g"], modules["v"], tokens), atol=1e-4, rtol=1e-4)
        if method == "hssl":
            expected = modules["head"](features[0])[:, 0]
            torch.testing.assert_close(branches.auxiliary.cls[0], expected, atol=1e-4, rtol=1e-4)
            predicted = prototype_logits(network.heads.project("auxiliary", expected), network.heads.prototypes())
            torch.testing.assert_close(
                predicted, logits(modules["mlp2"], modules["g"], modules["v"], expected), atol=1e-4, rtol=1e-4
            )
    centers = next(content[loss] for loss in ("dino_loss", "ibot_loss", "pretrain_loss") if loss in content)
    branch = "auxiliary" if method == "hssl" else "base"
    assert torch.equal(model.objective.cls_centers[branch].value, centers["center"][0])
    if method != "dino":
        assert torch.equal(model.objective.patch_centers["base"].value, centers["center2"][0, 0])
        assert torch.equal(model.student.base.mask_token, content["student"][_student(method) + "backbone.masked_embed"])


def _student(method: str) -> str:
    return "" if method == "hssl" else "module."


def test_training_continues_from_a_checkpoint(official, tmp_path, unchecked):
    method, _, _, path = official
    convert_checkpoint(path, tmp_path / "full", for_pretraining=True, backbone_kwargs={"num_heads": 1})
    model, info = HSSLForPreTraining.from_pretrained(tmp_path / "full", output_loading_info=True)
    assert not any(info.values()) and model.config.license and not model.config.norm_last_layer
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.student.parameters(), lr=0.01)
    model.train()(**tiny_views(grid=None if method == "dino" else 4)).loss.backward()
    optimizer.step()
    model.update_teacher(0.9)
    assert not [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert not any(p.requires_grad for p in model.teacher.parameters())


def test_backbone_is_stock_and_keeps_its_license(official, tmp_path, unchecked):
    """The teacher's base, by the command line, which detects the method from the names of tensors."""
    method, _, networks, path = official
    assert main(["convert", str(path), str(tmp_path / "stock"), "--num-attention-heads", "1"]) == 0
    stock, report = AutoModel.from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert not any(report.values())
    pixels = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        actual, expected = stock.eval()(pixels).last_hidden_state, networks["teacher"]["vit"].forward_features(pixels)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    license = {"dino": "apache-2.0", "ibot": "apache-2.0", "hssl": "cc-by-nc-sa-4.0"}[method]
    card, name = (tmp_path / "stock" / "README.md").read_text(), {"dino": "DINO", "ibot": "iBOT", "hssl": "HSSL"}[method]
    assert f"license: {license}" in card and ("not for commercial use" in card) == (method == "hssl")
    assert f"a checkpoint of {name}, as the layout of the file suggests." in card
    assert CITATIONS[name] in card and card.count("```bibtex") == 1 and f"by {name}\n" in card


def test_files_with_a_backbone_only_need_a_method(tmp_path, capsys, unchecked):
    backbone = vit(3)
    torch.save({"state_dict": under("", backbone)}, tmp_path / "backbone.pth")
    command = ["convert", str(tmp_path / "backbone.pth"), str(tmp_path / "stock"), "--num-attention-heads", "1"]
    assert main(command) == 2 and "--method dino, ibot or mae" in capsys.readouterr().err
    assert main([*command, "--method", "dino", "--for-pretraining"]) == 2 and "a backbone only" in capsys.readouterr().err
    assert main([*command, "--method", "dino"]) == 0
    pixels = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        actual = AutoModel.from_pretrained(tmp_path / "stock").eval()(pixels).last_hidden_state
        torch.testing.assert_close(actual, backbone.forward_features(pixels), atol=1e-4, rtol=1e-4)
    assert json.loads((tmp_path / "stock" / "config.json").read_text())["hidden_size"] == WIDTH
    assert main([*command, "--method", "ibot"]) == 0
    card = (tmp_path / "stock" / "README.md").read_text()
    assert "a checkpoint of iBOT, as it was named for the conversion." in card
    assert CITATIONS["iBOT"] in card and CITATIONS["DINO"] not in card and "by iBOT\n" in card


def test_pickles_of_arrays_from_jittor_are_read(tmp_path):
    """Arrays instead of tensors, and a checksum after the pickle."""
    content, networks = distillation("hssl")
    arrays = {
        key: {name: value.numpy() for name, value in content[key].items()} for key in ("student", "teacher", "pretrain_loss")
    }
    (tmp_path / "checkpoint.pkl").write_bytes(pickle.dumps({**arrays, "epoch": 100}) + b"checksum" * 4)
    model = from_distillation(read_checkpoint(tmp_path / "checkpoint.pkl"), "hssl", num_heads=1)
    assert torch.equal(model.student.heads.prototypes.weight_v, networks["student"]["v"])


class FolderCreatingPickle:
    """Unpickling this creates a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_pickles_of_arrays_execute_no_code(tmp_path):
    content = {"student": {"backbone.norm.weight": np.zeros(3)}, "teacher": FolderCreatingPickle(tmp_path / "created")}
    (tmp_path / "checkpoint.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ConversionError, match="mkdir is not a class that may be loaded"):
        read_checkpoint(tmp_path / "checkpoint.pkl")
    assert not (tmp_path / "created").exists()


CHANGES = {
    "missing tensor": (lambda s: s.pop("teacher.backbone.norm.bias"), "missing: teacher.*norm.bias"),
    "unexpected tensor": (lambda s: s.update({"student.head.bn.weight": torch.ones(3)}), "unexpected: student.head.bn.weight"),
    "another shape": (
        lambda s: s.update({"student.head.mlp.2.bias": torch.ones(3)}),
        r"student.head.mlp.2.bias: expected \(40,\), got \(3,\)",
    ),
    "missing head": (lambda s: [s.pop(name) for name in list(s) if "mlp.0" in name], "expected a checkpoint of ibot"),
    "missing prototypes": (
        lambda s: [s.pop(name) for name in list(s) if "last_layer" in name],
        "last_layer.weight_v' is missing",
    ),
    "separate prototypes of patches": (
        lambda s: s.update({"teacher.head.last_layer2.weight_v": torch.ones(30, 24)}),
        "differs from the prototypes of the class token",
    ),
    "unknown center": (lambda s: s.update({"loss.center3": torch.ones(3)}), "unexpected: loss.center3"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_mismatched_checkpoint_is_refused(change, tmp_path):
    content, _ = distillation("ibot")
    torch.save(content, tmp_path / "checkpoint.pth")
    checkpoint, (spoil, message) = read_checkpoint(tmp_path / "checkpoint.pth"), CHANGES[change]
    spoil(checkpoint.state)
    with pytest.raises(ConversionError, match=message):
        from_distillation(checkpoint, "ibot", num_heads=1)
