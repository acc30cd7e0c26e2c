"""Convert official checkpoints of SiameseIM, HSSL, iBOT, DINO, MoCo v3 and MAE to our classes and to stock models."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

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
from hssl_hf.convert.state_dict import base_config, require_tensor
from hssl_hf.fields import FieldError, Range, check
from hssl_hf.models.configuration_mae import HSSLMAEConfig
from hssl_hf.models.configuration_siamese_im import SiameseIMConfig
from hssl_hf.models.modeling_student_teacher import StudentTeacherPreTrainedModel
from hssl_hf.modules.position_embeddings import sincos_position_embedding
from hssl_hf.publish import model_card
from hssl_hf.publish.export import CardContext, export_backbone, export_draft, export_model, require_replaceable
from hssl_hf.publish.image_processor import image_processor
from hssl_hf.publish.origin import Release, as_plain
from hssl_hf.publish.parity import ExportError
from hssl_hf.publish.timm_wrapper import save_timm_wrapper

__all__ = [
    "METHODS", "Checkpoint", "ConversionError", "base_from_distillation", "base_from_mae", "base_from_siamese_im",
    "base_to_siamese_im", "classifier_from_siamese_im", "convert_checkpoint", "from_distillation", "from_mae", "from_moco_v3",
    "from_siamese_im", "read_checkpoint", "to_siamese_im",
]  # fmt: skip
CLASSIFIERS = {"siamese_im": SiameseIMConfig, "mae": partial(HSSLMAEConfig, auxiliary=None)}
METHODS = {"siamese_im": "SiameseIM", "hssl": "HSSL", "ibot": "iBOT", "dino": "DINO", "moco_v3": "MoCo v3", "mae": "MAE"}


def convert_checkpoint(
    path: Path | str, folder: Path | str, *, method: str | None = None, for_pretraining: bool = False, **overrides
) -> Path:
    """Convert an official checkpoint to a folder that transformers loads, with a model card that names its origin and license.

    Args:
        path: the checkpoint.
        folder: to write to; a stock backbone, or an image classifier from a fine-tuned checkpoint.
        method: one of `METHODS`; None to detect it from the names of tensors, which is possible unless the file contains a
            backbone only, or of a fine-tuned file from its position embeddings.
        for_pretraining: write the full model to continue training, with teacher and heads or decoder.
        overrides: values that do not follow from shapes: `decoder_num_attention_heads` and, in `backbone_kwargs`, `num_heads`.
    Returns:
        the folder.
    Raises:
        ConversionError: if the checkpoint cannot be read or converted.
        UserError: if the folder contains anything that no export has written.
    """
    folder = Path(folder)
    require_replaceable(folder)
    if method is not None and method not in METHODS:
        raise ConversionError(f"expected one of {tuple(METHODS)} as method, got {method!r}")
    num_heads = _attention_heads((overrides.get("backbone_kwargs") or {}).get("num_heads"), "num_attention_heads")
    if "decoder_num_attention_heads" in overrides:
        _attention_heads(overrides["decoder_num_attention_heads"], "decoder_num_attention_heads")
    with _naming(path):
        return _convert_to(folder, path, method, for_pretraining, num_heads, overrides)


@contextmanager
def _naming(path: Path | str) -> Iterator[None]:
    """Name the checkpoint in errors about its content."""
    try:
        yield
    except (ConversionError, FieldError) as error:
        if str(path) in str(error):
            raise
        raise ConversionError(f"{path}: {error}") from error


def _convert_to(
    folder: Path, path: Path | str, method: str | None, for_pretraining: bool, num_heads: int | None, overrides: dict
) -> Path:
    checkpoint = read_checkpoint(path)
    if "head.weight" in checkpoint.state:  # fine-tuned
        if for_pretraining:
            raise ConversionError(f"{path} is fine-tuned and has no teacher, projector and decoder; remove --for-pretraining")
        with export_draft(folder) as draft:
            name = method or method_of_classifier(checkpoint)
            _write_classifier(checkpoint, draft, name, num_heads, _release(path, name, method is None))
        return folder
    name = method or detect_method(checkpoint)
    model = _convert(checkpoint, name, for_pretraining, num_heads, overrides)
    context = CardContext({"release": _release(path, name, method is None)})
    return (export_model if for_pretraining else export_backbone)(model, folder, context=context)


def _release(path: Path | str, method: str, detected: bool) -> dict:
    return as_plain(Release(METHODS[method], Path(path).name, detected))


def _attention_heads(number: int | None, name: str) -> int | None:
    return check(Annotated[int, Range(1, 1024)] | None, number, name)


def detect_method(checkpoint: Checkpoint) -> str:
    """Detect the method of a pre-trained checkpoint from the names of its tensors.

    Raises:
        ConversionError: if it is a backbone only, which has the same names for several methods.
    """
    names = checkpoint.state.keys()
    if any(name.startswith("student.") for name in names):
        if any(".conv_blocks." in name for name in names):
            return "hssl"
        return "ibot" if "student.backbone.masked_embed" in names else "dino"
    if any(name.startswith("base_encoder.") for name in names):
        return "moco_v3"
    if any(name.startswith("decoder_blocks.") for name in names):
        return "mae"
    if "norm.weight" in names and "blocks.0.attn.qkv.weight" in names:
        raise ConversionError(
            "this file contains a backbone only, which has the same names for DINO, iBOT and MAE; set --method dino, ibot or "
            "mae, since the license differs"
        )
    return "siamese_im"


def method_of_classifier(checkpoint: Checkpoint) -> str:
    """Detect the method of a fine-tuned checkpoint: SiameseIM and MAE have the same names, but swapped position embeddings.

    Fine-tuning changes the fixed embeddings from which it starts only little.

    Raises:
        ConversionError: if the positions resemble neither.
    """
    positions = require_tensor(checkpoint.state, "pos_embed", 3)[0, 1:].float()
    side, width = math.isqrt(len(positions)), positions.shape[1]
    if side**2 == len(positions) and width % 4 == 0:
        table = sincos_position_embedding((side, side), width)
        tables = {"siamese_im": table.flatten(0, 1), "mae": table.roll(width // 2, -1).flatten(0, 1)}
        likeness = {name: torch.cosine_similarity(positions, value).mean() for name, value in tables.items()}
        method = max(likeness, key=likeness.get)
        if likeness[method] > 0.9:
            return method
    raise ConversionError(
        "this file contains a fine-tuned classifier, which has the same names for SiameseIM and MAE, and its position "
        "embeddings resemble neither; set --method siamese_im or mae, since the card cites the method"
    )


def _convert(
    checkpoint: Checkpoint, method: str, for_pretraining: bool, num_heads: int | None, overrides: dict
) -> StudentTeacherPreTrainedModel:
    if method == "siamese_im":
        return from_siamese_im(checkpoint, **overrides)
    if method == "moco_v3":
        return from_moco_v3(checkpoint, num_heads)
    if method == "mae":
        if for_pretraining:
            return from_mae(checkpoint, num_heads, overrides.get("decoder_num_attention_heads", 16))
        return base_from_mae(checkpoint, num_heads)
    if any(name.startswith("student.") for name in checkpoint.state):
        return from_distillation(checkpoint, method, num_heads)
    if for_pretraining:
        raise ConversionError("this file contains a backbone only, without heads; remove --for-pretraining")
    return base_from_distillation(checkpoint, method, num_heads)


def _write_classifier(checkpoint: Checkpoint, folder: Path, method: str, num_heads: int | None, release: dict) -> None:
    """Write a fine-tuned checkpoint as a stock classifier, and verify the logits of what transformers loads."""
    if method not in CLASSIFIERS:
        raise ConversionError(
            f"fine-tuned checkpoints can be converted for {' and '.join(CLASSIFIERS)} only, got the method {method!r}"
        )
    model = classifier_from_siamese_im(checkpoint, num_heads)
    config = base_config(checkpoint.state, num_heads)
    size = config["image_size"]
    processor = image_processor(size)
    arguments = {"img_size": size, "global_pool": "avg", **config["backbone_kwargs"]}
    save_timm_wrapper(model, model.state_dict(), config["backbone"], arguments, processor, folder)
    processor.save_pretrained(folder)
    facts = model_card.facts(CLASSIFIERS[method](**config, license=LICENSE), "classifier", without_norm=False, release=release)
    (folder / "README.md").write_text(model_card.render(facts, kind="classifier"))
    loaded, report = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (loaded.eval()(pixels).logits - model(pixels)).abs().max()
    if any(report.values()) or not difference <= 1e-4:
        raise ExportError(f"expected the logits of the checkpoint, got a difference of {difference:.1e}: {report}")
