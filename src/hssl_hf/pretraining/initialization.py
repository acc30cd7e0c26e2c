"""Weights to start from: a full model to continue training, or a backbone behind which fresh heads warm up."""

import logging
from pathlib import Path

from huggingface_hub import hf_hub_download
from timm.models import adapt_input_conv
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from hssl_hf.errors import UserError
from hssl_hf.evaluation.load_report import reading_model, require_finite, require_weights
from hssl_hf.models.configuration_base import PreTrainingConfig
from hssl_hf.models.modeling_student_teacher import StudentTeacherPreTrainedModel
from hssl_hf.modules.ema import copy_to_teacher
from hssl_hf.publish.origin import Origin, read_origin
from hssl_hf.publish.to_transformers import from_transformers

logger = logging.getLogger(__name__)


def load_initial_weights(model: StudentTeacherPreTrainedModel, where: str) -> tuple[bool, Origin]:
    """Give a fresh model the weights of another.

    First convolutions of weights for three channels are adapted to another number by timm's rule.

    Args:
        model: as the recipe describes it.
        where: folder or Hub repository, with @revision where it is not main.
    Returns:
        whether the heads are fresh, because `where` holds a backbone alone; and the origin of the weights.
    Raises:
        UserError: if there is nothing to load, it is damaged, or it does not fit the model.
    """
    path, _, revision = (where, "", "") if Path(where).exists() else where.partition("@")
    location = {"pretrained_model_name_or_path": path, "revision": revision or "main"}
    if Path(path).is_file():
        raise UserError(
            f"init_from={where!r} is a file; expected a folder or a Hub repository. Convert the checkpoint first, which keeps "
            "its license: hssl-hf convert FILE FOLDER"
        )
    with reading_model(where, "init_from is neither a folder nor a Hub repository with a model"):
        commit = None if Path(path).exists() else _commit(path, location["revision"])
        location["revision"] = commit or location["revision"]  # one commit for all files, whatever is pushed meanwhile
        config = AutoConfig.from_pretrained(**location)
        full_model = isinstance(config, PreTrainingConfig)
        auto = AutoModelForPreTraining if full_model else AutoModel
        source, report = auto.from_pretrained(**location, output_loading_info=True, ignore_mismatched_sizes=True)
    require_weights(report, where, complete=full_model)
    require_finite(source, where)
    origin = read_origin(path, revision or None, commit, getattr(config, "license", None) if full_model else None)
    if full_model:
        state = _adapt_channels(source.state_dict(), model.state_dict(), model.config.num_channels)
        _check(model.state_dict(), state, where, "student, teacher and heads")
        model.load_state_dict(state)
        return False, origin
    base = model.student.base
    state = source.timm_model.state_dict() if hasattr(source, "timm_model") else from_transformers(source, base)
    expected = base.timm_state_dict()
    state = _adapt_channels(state, expected, base.num_channels)
    kept = {name: value for name, value in state.items() if name in expected or not name.startswith(("norm.", "fc_norm."))}
    _check(expected, kept, where, "the base")
    base.model.load_state_dict({name: value for name, value in kept.items() if not name.startswith("norm.")})
    base.norm.load_state_dict({name.removeprefix("norm."): value for name, value in kept.items() if name.startswith("norm.")})
    if model.teacher is not None:
        copy_to_teacher(model.student, model.teacher)
    return True, origin


def _commit(repository: str, revision: str) -> str:
    """The commit of a branch or tag, from the cache where the Hub is not to be reached."""
    return Path(hf_hub_download(repository, "config.json", revision=revision)).parent.name


def _adapt_channels(state: dict[str, Tensor], expected: dict[str, Tensor], channels: int) -> dict[str, Tensor]:
    """Weights with convolutions of three channels adapted to the number that is expected there.

    Source: timm: the sum over red, green and blue for one channel, repeated and scaled for others.
    """

    def reads_rgb(name: str, value: Tensor) -> bool:
        shape = tuple(expected[name].shape) if name in expected else ()
        return value.ndim == 4 and value.shape[1] == 3 != channels and shape == (len(value), channels, *value.shape[2:])

    adapted = {name: adapt_input_conv(channels, value) for name, value in state.items() if reads_rgb(name, value)}
    if adapted:
        logger.info("adapted from 3 to %d channels: %s", channels, ", ".join(adapted))
    return {**state, **adapted}


def _check(expected: dict[str, Tensor], actual: dict[str, Tensor], where: str, what: str) -> None:
    problems = [f"missing: {name}" for name in expected if name not in actual]
    problems += [f"unexpected: {name}" for name in actual if name not in expected]
    problems += [
        f"{name}: expected {tuple(value.shape)}, got {tuple(actual[name].shape)}"
        for name, value in expected.items()
        if name in actual and actual[name].shape != value.shape
    ]
    if problems:
        raise UserError(
            f"init_from={where!r} does not fit {what} that the recipe describes:\n  " + "\n  ".join(problems[:10])
            + "\nSet model.* and views.global_crop_size to those of that model; facts.yaml beside its weights has them."
        )  # fmt: skip
