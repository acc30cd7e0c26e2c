"""SiameseIM through the program: its variants, its teacher, and mistakes."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from hssl_hf.cli import main as cli
from hssl_hf.runs.metric_logger import read_log

VARIANTS = {
    "mae": [
        "model.target=pixel",
        "model.views=same",
        "model.decoder_norm=layer",
        "model.projector_depth=0",
        "model.final_norm=true",
    ],
    "pixels of another view": ["model.target=pixel"],
    "global": ["model.level=global"],
    "random masks, moco": ["model.loss_normalization=batch_norm_l2", "masks.shape=random", "model.decoder_norm=layer"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_siamese_variants_train_and_export(pretrain, tmp_path, variant, capsys):
    """Six steps of every kind of variant through the program; the export loads, its card explains how to read it."""
    one_view = ["views.global_crop_blur=[0.0]", "views.global_crop_solarize=[0.0]"] if variant == "mae" else []
    assert pretrain("optim.epochs=0.0096", *VARIANTS[variant], *one_view, method="siamese_im") == 0
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert len(log) == 6 and ("reconstruction" if "pixel" in " ".join(VARIANTS[variant]) else "collapse") in log[-1]
    assert AutoModel.from_pretrained(tmp_path / "run" / "export").config.model_type == "vit"
    card = (tmp_path / "run" / "export" / "README.md").read_text()
    assert ("hidden_states[-1]" in card) == (variant != "mae") and "The student's base" in card
    if variant == "global":
        assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "again")]) == 0
        pair = [load_file(folder / "model.safetensors") for folder in (tmp_path / "run" / "export", tmp_path / "again")]
        assert all(torch.equal(pair[0][name], pair[1][name]) for name in pair[0])


def test_siamese_teacher_follows_the_official_momentum(pretrain, tmp_path):
    """Momentum 0, 1/2 and 1 for the steps 0, 1 and 2: after step 0 the teacher moves by half, then it is frozen."""
    settings = ["optim.epochs=0.0032", "optim.teacher_momentum=[0.0, 1.0]", "optim.warmup_epochs=0"]
    assert pretrain(*settings, "run.save_steps=1", "model.drop_path_rate=0.0", method="siamese_im") == 0
    name = "base.model.blocks.0.mlp.fc1.weight"
    first, second = (
        load_file(tmp_path / "run" / "checkpoints" / f"step-0000000{step}" / "model.safetensors") for step in (1, 2)
    )
    assert torch.equal(first[f"teacher.{name}"], second[f"teacher.{name}"])
    assert not torch.equal(first[f"teacher.{name}"], first[f"student.{name}"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run.export_network=teacher", "model.target=pixel"], "this method has no teacher"),
        (["model.views=same"], "this method takes 1 global views, got 2"),
        (["masks.shape=block"], "set masks.shape to fixed_count_block or random"),
        (["masks.ratio_jitter=[0.1]"], "and masks.ratio_jitter=[0.0]"),
        (["masks.ratios=[0.2, 0.6]", "masks.ratio_jitter=[0.0, 0.0]"], "one ratio in masks.ratios"),
        (["model.decoder_num_attention_heads=5"], "set decoder_num_attention_heads"),
        (["model.objective=dino"], "model.objective: unknown key"),
        (["model.backbone=resnet18", "model.backbone_kwargs=null"], "needs a vision transformer"),
        (["views.num_local_crops=1"], "takes no local views, got 1"),
    ],
)
def test_siamese_mistakes_end_in_one_clear_line(pretrain, capsys, arguments, message):
    assert pretrain(*arguments, method="siamese_im") == 2
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors
