import argparse
import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForImageClassification

from hssl_hf import SiameseIMForPreTraining
from hssl_hf.cli.main import main
from hssl_hf.convert import (
    Checkpoint,
    ConversionError,
    base_from_siamese_im,
    base_to_siamese_im,
    classifier_from_siamese_im,
    convert_checkpoint,
    from_siamese_im,
    read_checkpoint,
    to_siamese_im,
)
from hssl_hf.engine.optim import build_optimizer, clip_global_norm, set_rates
from tests.conftest import MAE, siamese_views, tiny_siamese
from tests.models import siamese_reference as reference
from tests.processes import run_code

HEADS, DECODER_HEADS = 2, 4
SHAPES = {"decoder_num_attention_heads": DECODER_HEADS, "backbone_kwargs": {"num_heads": HEADS}}
FLAGS = ["--num-attention-heads", str(HEADS), "--decoder-num-attention-heads", str(DECODER_HEADS)]


@pytest.fixture
def state():
    return reference.random_state()


def official_geometry(crops: torch.Tensor) -> torch.Tensor:
    """(2, B, 5) crops -> (B, 6) di, dj, dh, dw, flip, fj, each crop in the coordinates of its image, which may be flipped."""
    width = 400.0
    rows = []
    for (top, left, h, w, f), (top2, left2, h2, w2, f2) in zip(*crops.tolist(), strict=True):
        j, j2 = (width - left - w if f else left), (width - left2 - w2 if f2 else left2)
        rows.append([(top2 - top) / h, (j2 - j) / w, h2 / h, w2 / w, float(f != f2), (width - j - j2) / w])
    return torch.tensor(rows)


def train(state, views, momenta, lr=1e-3):
    """Three steps of a converted model, in the official order: the teacher is updated before the forward pass."""
    model = from_siamese_im(Checkpoint(state), **SHAPES).train()
    optimizer, losses = build_optimizer(model.student, (0.9, 0.95)), []
    for batch, momentum in zip(views, momenta, strict=True):
        model.update_teacher(momentum)
        set_rates(optimizer, lr, 0.05)
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        clip_global_norm([p.grad for p in model.student.parameters() if p.grad is not None], 1.0)
        optimizer.step()
        losses.append(loss.item())
    return to_siamese_im(model), losses


def test_three_steps_equal_an_independent_implementation_in_every_weight(state):
    """Losses, student and teacher after three AdamW steps from one official state dict; a repetition has the same bits."""
    views, momenta = [siamese_views(seed) for seed in range(3)], (0.9, 0.95, 0.99)
    batches = [
        (v["pixel_values"][0], v["pixel_values"][1], v["bool_masked_pos"][0], official_geometry(v["crop_boxes"])) for v in views
    ]
    expected, expected_losses = reference.train(state, batches, momenta, HEADS, DECODER_HEADS)
    weights, losses = train(state, views, momenta)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        if "running" in name or "tracked" in name or name == "mm_mask_token":
            continue  # the reference has no running statistics, and the teacher's mask token is unused
        actual = weights[name]
        if name.endswith("qkv.bias"):  # a key's bias has only rounding errors as gradient, which Adam amplifies
            actual, value = (each.view(3, -1)[[0, 2]] for each in (actual, value))
        torch.testing.assert_close(actual, value, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    repeated, repeated_losses = train(state, views, momenta)
    assert repeated_losses == losses and all(torch.equal(repeated[name], weights[name]) for name in weights)
    assert not torch.equal(weights["blocks.0.attn.proj.weight"], state["blocks.0.attn.proj.weight"])


def test_round_trip_keeps_every_weight(state):
    back = to_siamese_im(from_siamese_im(Checkpoint(state), **SHAPES))
    assert back.keys() == state.keys()
    for name, value in state.items():
        if name != "mm_mask_token":
            torch.testing.assert_close(back[name], value, atol=1e-6 if name == "decoder_pos_embed" else 0, rtol=0)


def test_configuration_follows_from_shapes_and_arguments(state):
    config = from_siamese_im(Checkpoint(state, {"neg_weight": 0.5}), **SHAPES).config
    assert config.image_size == 32 and config.backbone_kwargs == {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    assert (config.projector_depth, config.decoder_num_hidden_layers) == (1, 2)
    assert (config.decoder_norm, config.negative_weight) == ("batch", 0.5)
    assert config.license == "cc-by-nc-4.0" and config.freeze_patch_embed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.mlp.fc2.bias"), "missing: blocks.1.mlp.fc2.bias"),
        (lambda s: s.pop("mm_blocks.0.norm1.weight"), "missing: mm_blocks.0.norm1.weight"),
        (lambda s: s.pop("decoder_pos_embed"), "missing: decoder_pos_embed"),
        (lambda s: s.pop("mask_token"), "missing: mask_token"),
        (lambda s: s.pop("patch_embed.proj.weight"), "'patch_embed.proj.weight' is missing"),
        (lambda s: s.update({"norm.weight": torch.ones(16)}), "unexpected: norm.weight"),
        (lambda s: s.update({"cls_token": torch.ones(1, 2, 16)}), r"cls_token: expected \(1, 1, 16\), got \(1, 2, 16\)"),
        (lambda s: s.update({"patch_embed.proj.weight": torch.ones(16, 192)}), r"expected 4 axes.*got \(16, 192\)"),
        (lambda s: s.update({"pos_embed": torch.ones(17)}), "pos_embed: expected 3 axes"),
        (
            lambda s: s.update({"decoder_embed.weight": torch.ones(0, 16)}),
            "decoder_embed.weight: expected 2 axes, none of them",
        ),
        (lambda s: s.update({"pos_embed": torch.ones(1, 12, 16)}), r"pos_embed: expected"),
        (
            lambda s: s.update({"decoder_pos_embed": s["decoder_pos_embed"] + 1}),
            "expected a fixed sine-cosine position embedding",
        ),
        (
            lambda s: s.update({"student_norm.weight": torch.zeros(16), "student_norm.bias": torch.zeros(16)}),
            "expected student_norm with scale 1",
        ),
    ],
)
def test_mismatched_checkpoint_is_refused(state, change, message):
    change(state)
    with pytest.raises(ConversionError, match=message):
        from_siamese_im(Checkpoint(state), **SHAPES)


def test_norm_of_predictions_is_converted(state):
    state |= {"student_norm.weight": torch.ones(16), "student_norm.bias": torch.zeros(16)}
    model = from_siamese_im(Checkpoint(state), **SHAPES)
    assert model.config.normalize_prediction and to_siamese_im(model).keys() == state.keys()


@pytest.mark.parametrize("variant", [MAE, {"level": "global"}, {"views": "same"}, {"final_norm": True}])
def test_variants_without_official_code_are_refused(variant):
    with pytest.raises(ConversionError, match="convert its base only, with base_to_siamese_im"):
        to_siamese_im(tiny_siamese(**variant))


@pytest.mark.parametrize("layout", ["pre-trained", "fine-tuned"])
def test_base_is_converted_in_both_directions(state, layout):
    """From both layouts to a backbone with the features of the reference, and back to the same bits."""
    source = state if layout == "pre-trained" else fine_tuned(state)
    base = base_from_siamese_im(Checkpoint(source), HEADS)
    pixels = torch.randn(2, 3, 32, 32)
    reference_state = {n: v for n, v in state.items() if not n.startswith("projector")}
    reference_state |= {"decoder_embed.weight": torch.eye(16), "decoder_embed.bias": torch.zeros(16)}
    tokens, _ = base(pixels)
    expected = reference.encode(pixels, None, reference_state, "", HEADS, DECODER_HEADS)
    torch.testing.assert_close(tokens.cls, expected[:, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tokens.patches.flatten(1, 2), expected[:, 1:], atol=1e-5, rtol=1e-4)
    back = base_to_siamese_im(base)
    assert back and all(torch.equal(back[name], source[name]) for name in back)
    assert base_from_siamese_im(Checkpoint(back), HEADS).width == 16
    with pytest.raises(ConversionError, match=r"unexpected: norm\.weight"):
        base_from_siamese_im(Checkpoint({**source, "norm.weight": torch.ones(16)}), HEADS)
    with pytest.raises(ConversionError, match=r"no counterpart of norm\.weight, norm\.bias"):
        base_to_siamese_im(tiny_siamese(**MAE).student.base)


class PrintingPickle:
    """Unpickling this prints a line."""

    def __reduce__(self):
        return print, ("code of the checkpoint ran",)


def test_pickles_execute_no_code(state, tmp_path, capsys):
    """A namespace of arguments is loaded; any other object is refused, wherever it is stored."""
    torch.save({"model": state, "args": argparse.Namespace(neg_weight=0.3, model="sim"), "epoch": 3}, tmp_path / "good.pth")
    checkpoint = read_checkpoint(tmp_path / "good.pth")
    assert checkpoint.arguments["neg_weight"] == 0.3 and checkpoint.state.keys() == state.keys()
    for content in (
        {"model": state, "args": PrintingPickle()},
        {"model": state, "args": argparse.Namespace(x=PrintingPickle())},
    ):
        torch.save(content, tmp_path / "bad.pth")
        with pytest.raises(ConversionError, match="cannot be read safely"):
            read_checkpoint(tmp_path / "bad.pth")
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None, {}, {"model": {}}, {"model": {"a": 1}}, [1]])
def test_files_without_weights_are_refused(tmp_path, content):
    path = tmp_path / "file.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ConversionError):
        read_checkpoint(path)


def fine_tuned(state) -> dict[str, torch.Tensor]:
    base = {n: v for n, v in state.items() if n.startswith(("cls_token", "pos_embed", "patch_embed", "blocks"))}
    generator = torch.Generator().manual_seed(7)
    head = {"fc_norm.weight": torch.ones(16) * 1.2, "fc_norm.bias": torch.zeros(16) + 0.1}
    return {**base, **head, "head.weight": torch.randn(5, 16, generator=generator), "head.bias": torch.zeros(5)}


def test_fine_tuned_classifier_is_on_the_norm_of_the_mean(state, tmp_path):
    """Equal to the reference: mean of the patch tokens after the last block, norm, linear; by the command line."""
    tuned = fine_tuned(state)
    torch.save({"model": tuned}, tmp_path / "tuned.pth")
    assert main(["convert", str(tmp_path / "tuned.pth"), str(tmp_path / "out"), *FLAGS]) == 0
    model, report = AutoModelForImageClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    pixels = torch.randn(3, 3, 32, 32)
    patches = torch.nn.functional.conv2d(pixels, tuned["patch_embed.proj.weight"], tuned["patch_embed.proj.bias"], stride=8)
    tokens = torch.cat([tuned["cls_token"].expand(3, -1, -1), patches.flatten(2).transpose(1, 2)], 1) + tuned["pos_embed"]
    tokens = reference.stack(tokens, tuned, "blocks", HEADS)
    expected = reference.linear(reference.norm(tokens[:, 1:].mean(1), tuned, "fc_norm"), tuned, "head")
    torch.testing.assert_close(model.eval()(pixels).logits, expected, atol=1e-5, rtol=1e-4)
    assert not any(report.values()) and "license: cc-by-nc-4.0" in (tmp_path / "out" / "README.md").read_text()
    assert classifier_from_siamese_im(Checkpoint(tuned), HEADS).state_dict().keys() == tuned.keys()


def test_the_method_of_a_fine_tuned_checkpoint_is_that_of_its_positions(state, tmp_path, capsys):
    """MAE's and SiameseIM's files have the same names; their fixed positions, which fine-tuning changes little, are swapped."""
    tuned = fine_tuned(state)
    drift = 0.05 * torch.randn_like(tuned["pos_embed"])
    swapped = {**tuned, "pos_embed": tuned["pos_embed"].roll(8, -1) + drift}
    for name, content in (("siamese_im", {**tuned, "pos_embed": tuned["pos_embed"] + drift}), ("mae", swapped)):
        torch.save({"model": content}, tmp_path / f"{name}.pth")
        assert main(["convert", str(tmp_path / f"{name}.pth"), str(tmp_path / name), *FLAGS]) == 0
    cards = {name: (tmp_path / name / "README.md").read_text() for name in ("siamese_im", "mae")}
    assert "by SiameseIM, fine-tuned" in cards["siamese_im"] and "tao2023siamese" in cards["siamese_im"]
    assert "by MAE, fine-tuned" in cards["mae"] and "SiameseIM" not in cards["mae"]
    assert "# ViT of width 16, depth" in cards["mae"] and "a checkpoint of MAE, as the layout" in cards["mae"]
    torch.save({"model": {**tuned, "pos_embed": torch.randn_like(drift)}}, tmp_path / "unknown.pth")
    assert main(["convert", str(tmp_path / "unknown.pth"), str(tmp_path / "x"), *FLAGS]) == 2
    assert "set --method siamese_im or mae" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "unknown.pth"), str(tmp_path / "x"), *FLAGS, "--method", "mae"]) == 0
    assert main(["convert", str(tmp_path / "unknown.pth"), str(tmp_path / "y"), *FLAGS, "--method", "dino"]) == 2
    assert "can be converted for siamese_im and mae only, got the method 'dino'" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["fc_norm.weight", "head.bias", "blocks.0.attn.qkv.weight"])
def test_incomplete_fine_tuned_checkpoints_are_refused(state, missing):
    tuned = fine_tuned(state)
    tuned.pop(missing)
    with pytest.raises(ConversionError, match=f"missing: {missing}"):
        classifier_from_siamese_im(Checkpoint(tuned), HEADS)


def test_converted_backbone_is_stock_and_keeps_its_license(state, tmp_path, forked_parity):
    """`AutoModel` computes the student's features as the reference does."""
    save_file({n: v.contiguous() for n, v in state.items()}, tmp_path / "sim.safetensors")
    assert main(["convert", str(tmp_path / "sim.safetensors"), str(tmp_path / "out"), *FLAGS]) == 0
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    pixels = torch.randn(2, 3, 32, 32)
    identity = {"decoder_embed.weight": torch.eye(16), "decoder_embed.bias": torch.zeros(16)}
    reference_state = {n: v for n, v in state.items() if not n.startswith("projector")} | identity
    expected = reference.encode(pixels, None, reference_state, "", HEADS, DECODER_HEADS)
    actual = model(pixels, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card and "hidden_states[-1]" in card
    assert "the file `sim.safetensors`: a checkpoint of SiameseIM, as the layout of the file suggests." in card
    assert "# ViT of width 16, depth" in card


def test_full_model_continues_from_a_checkpoint(state, tmp_path, capsys):
    torch.save({"model": state, "args": argparse.Namespace()}, tmp_path / "sim.pth")
    convert_checkpoint(tmp_path / "sim.pth", tmp_path / "full", for_pretraining=True, **SHAPES)
    loaded = SiameseIMForPreTraining.from_pretrained(tmp_path / "full")
    direct = from_siamese_im(Checkpoint(state), **SHAPES)
    views = siamese_views()
    assert torch.equal(loaded.train()(**views).loss, direct.train()(**views).loss)
    assert "license: cc-by-nc-4.0" in (tmp_path / "full" / "README.md").read_text()
    torch.save({"model": fine_tuned(state)}, tmp_path / "tuned.pth")
    assert main(["convert", str(tmp_path / "tuned.pth"), str(tmp_path / "x"), "--for-pretraining"]) == 2
    assert "no teacher, projector and decoder" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "nowhere.pth"), str(tmp_path / "x")]) == 2
    assert main(["convert", str(tmp_path / "sim.pth"), str(tmp_path / "x"), "--num-attention-heads", "3"]) == 2
    assert "3 attention heads do not divide the width 16" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert main(["convert", str(tmp_path / "tuned.pth"), str(tmp_path / "mine")]) == 2
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_namespaces_are_not_allowed_globally(state, tmp_path):
    """They are safe for `torch.load` only while a checkpoint is read."""
    torch.save({"model": state, "args": argparse.Namespace(a=1)}, tmp_path / "sim.pth")
    read_checkpoint(tmp_path / "sim.pth")
    code = "import sys, torch, hssl_hf.convert\ntry: torch.load(sys.argv[1], weights_only=True)\nexcept Exception: print('no')"
    done = run_code([sys.executable, "-c", code, str(tmp_path / "sim.pth")])
    assert done.returncode == 0 and done.stdout.strip() == "no", done.stderr
