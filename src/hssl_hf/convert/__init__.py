"""Official checkpoints of the two papers and of their base methods -> our classes and stock models."""

from pathlib import Path

import torch
from transformers import AutoModelForImageClassification

from hssl_hf.convert.dino_ibot_hssl import base_from_distillation, from_distillation
from hssl_hf.convert.mae import base_from_mae, from_mae
from hssl_hf.convert.moco_v3 import from_moco_v3
from hssl_hf.convert.official_checkpoint import Checkpoint, ConversionError, read_checkpoint
from hssl_hf.convert.siamese_im import (
    LICENSE,
    base_from_siamese_im,
    base_to_siamese_im,
    classifier_from_siamese_im,
    from_siamese_im,
    to_siamese_im,
)
from hssl_hf.convert.state_dict import base_arguments
from hssl_hf.models.configuration_siamese_im import SiameseIMConfig
from hssl_hf.models.modeling_student_teacher import StudentTeacherPreTrainedModel
from hssl_hf.publish import model_card
from hssl_hf.publish.export import ExportError, export_backbone, export_model, refuse_foreign
from hssl_hf.publish.image_processor import image_processor
from hssl_hf.publish.timm_wrapper import save_timm_wrapper

__all__ = [
    "METHODS",
    "Checkpoint",
    "ConversionError",
    "base_from_distillation",
    "base_from_mae",
    "base_from_siamese_im",
    "base_to_siamese_im",
    "classifier_from_siamese_im",
    "convert_checkpoint",
    "from_distillation",
    "from_mae",
    "from_moco_v3",
    "from_siamese_im",
    "read_checkpoint",
    "to_siamese_im",
]
METHODS = ("siamese_im", "hssl", "ibot", "dino", "moco_v3", "mae")


def convert_checkpoint(
    path: Path | str, folder: Path | str, *, method: str | None = None, for_pretraining: bool = False, **changes
) -> Path:
    """Write an official checkpoint as a folder that transformers loads, with a card that names its license.

    Args:
        path: the checkpoint.
        folder: where to; a stock backbone, or for a fine-tuned checkpoint a stock image classifier.
        method: one of `METHODS`; None to infer it from the names of the tensors, which needs more in the file than a backbone.
        for_pretraining: write the model for pre-training instead, with teacher and heads or decoder.
        changes: what shapes do not determine: `decoder_num_attention_heads` and, in `backbone_kwargs`, `num_heads`.
    Returns:
        the folder.
    Raises:
        ConversionError: if the checkpoint is not what it should be.
    """
    checkpoint, folder = read_checkpoint(path), Path(folder)
    refuse_foreign(folder)
    num_heads = (changes.get("backbone_kwargs") or {}).get("num_heads")
    if checkpoint.fine_tuned:
        if for_pretraining:
            raise ConversionError(f"{path} is fine-tuned: it has a classifier, but no teacher, projector and decoder")
        _write_classifier(checkpoint, folder, num_heads)
        return folder
    model = _convert(checkpoint, method or tell_method(checkpoint), for_pretraining, num_heads, changes)
    return export_model(model, folder) if for_pretraining else export_backbone(model, folder)


def tell_method(checkpoint: Checkpoint) -> str:
    """The method of a pre-trained checkpoint, by the names of its tensors.

    Raises:
        ConversionError: if it is a backbone alone, which several methods write alike.
    """
    names = checkpoint.state.keys()
    if any(name.startswith("student.") for name in names):
        if any(".conv_blocks." in name for name in names):
            return "hssl"
        return "ibot" if "student.backbone.masked_embed" in names else "dino"
    if any(name.removeprefix("module.").startswith("base_encoder.") for name in names):
        return "moco_v3"
    if any(name.startswith("decoder_blocks.") for name in names):
        return "mae"
    if "norm.weight" in names and "blocks.0.attn.qkv.weight" in names:
        raise ConversionError(
            "this file holds a backbone alone, which DINO, iBOT and MAE write alike; name the method (--method dino, ibot or "
            "mae), since its license goes into the card"
        )
    return "siamese_im"


def _convert(
    checkpoint: Checkpoint, method: str, for_pretraining: bool, num_heads: int | None, changes: dict
) -> StudentTeacherPreTrainedModel:
    if method not in METHODS:
        raise ConversionError(f"expected one of {METHODS} as method, got {method!r}")
    if method == "siamese_im":
        return from_siamese_im(checkpoint, **changes)
    if method == "moco_v3":
        return from_moco_v3(checkpoint, num_heads)
    if method == "mae":
        decoder_num_attention_heads = changes.get("decoder_num_attention_heads", 16)
        return (
            from_mae(checkpoint, num_heads, decoder_num_attention_heads)
            if for_pretraining
            else base_from_mae(checkpoint, num_heads)
        )
    if any(name.startswith("student.") for name in checkpoint.state):
        return from_distillation(checkpoint, method, num_heads)
    if for_pretraining:
        raise ConversionError(
            "this file holds a backbone alone, without the heads that training needs; leave --for-pretraining away"
        )
    return base_from_distillation(checkpoint, method, num_heads)


def _write_classifier(checkpoint: Checkpoint, folder: Path, num_heads: int | None) -> None:
    """Write a fine-tuned checkpoint as a stock classifier and compare what transformers loads with what was converted."""
    model = classifier_from_siamese_im(checkpoint, num_heads)
    size, kwargs = base_arguments(checkpoint.state, num_heads)
    processor = image_processor(size)
    folder.mkdir(parents=True, exist_ok=True)
    arguments = {"img_size": size, "global_pool": "avg", **kwargs}
    save_timm_wrapper(model, model.state_dict(), "vit_base_patch16_224", arguments, processor, folder)
    processor.save_pretrained(folder)
    facts = model_card.facts(SiameseIMConfig(image_size=size, license=LICENSE), "classifier", without_norm=False)
    (folder / "README.md").write_text(model_card.render(facts, kind="classifier"))
    loaded, report = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (loaded.eval()(pixels).logits - model(pixels)).abs().max()
    if any(report.values()) or not difference <= 1e-4:
        raise ExportError(
            f"the classifier in {folder} differs from the checkpoint by {difference:.1e}; loading reported {report}"
        )
