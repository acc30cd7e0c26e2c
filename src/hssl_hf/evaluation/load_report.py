"""Whether the weights that a library has loaded are those of the model, all of them, and numbers."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from torch import nn

from hssl_hf.errors import UserError, reading

HEADS = (  # first names of weights that a checkpoint has beside its backbone
    "auxiliary_head",
    "classifier",
    "cls_classifier",
    "decode_head",
    "decoder",
    "distillation_classifier",
    "fc",
    "head",
    "head_dist",
    "layernorm",  # of BEiT's head for masked images
    "lm_head",
    "pooler",
    "text_projection",
    "visual_projection",
)
UNUSED = "mask_token"  # in any module
logger = logging.getLogger(__name__)


@contextmanager
def reading_model(name: str, advice: str) -> Iterator[None]:
    """Convert what libraries raise about the folder or repository of a model into a message that names it.

    Args:
        name: of the folder or repository.
        advice: what it is not, or what to do.
    Raises:
        UserError: for any error; where the Hub refused access, with what gives it.
    """
    with reading(repr(name), advice):
        try:
            yield
        except OSError as error:
            if not _lacks_access(error):
                raise
            raise UserError(
                f"the Hub did not let {name!r} be read with the token that was given, or without one; request access on its "
                "page if it is gated, then log in by `hf auth login` or give a token that has access"
            ) from error


def _lacks_access(error: BaseException | None) -> bool:
    """Whether the Hub refused, for want of a token with access; a repository that it hides looks like one that is missing."""
    while error is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__ or error.__context__
    is_hidden = isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError)
    return error is not None and not is_hidden and error.response.status_code in (401, 403)


def require_weights(report: dict, name: str, model_type: str = "", complete: bool = False) -> None:
    """Make sure that all weights of a model were loaded, and nothing but heads left out.

    Args:
        report: of `from_pretrained`, with `output_loading_info` and `ignore_mismatched_sizes`.
        name: of the folder or repository.
        model_type: of the model, of some of which a missing pooler is reported.
        complete: not even pooler and mask token may be missing, or a head left out.
    Raises:
        UserError: if not.
    """
    missing = {str(key) for key in report.get("missing_keys", ())}
    pooler = set() if complete else {key for key in missing if key.startswith("pooler.")}
    ignored = set() if complete else {key for key in missing if key.endswith(UNUSED)}
    problems = [f"missing: {key}" for key in sorted(missing - pooler - ignored)]
    problems += [f"of another shape: {key[0] if isinstance(key, tuple) else key}" for key in report.get("mismatched_keys", ())]
    unknown = sorted(str(key) for key in report.get("unexpected_keys", ()))
    problems += [f"unknown: {key}" for key in unknown if complete or not _is_head(key)]
    problems += [f"failed: {message}" for message in report.get("error_msgs") or ()]
    _refuse(problems, name)
    if pooler and model_type in ("beit", "data2vec-vision"):
        logger.warning(
            "%r has no weights for its pooler: the mean of the patches is normalized without trained scale and shift", name
        )


def _is_head(key: str) -> bool:
    return key.removeprefix("timm_model.").split(".")[0] in HEADS or key.endswith(UNUSED)


def require_finite(network: nn.Module, name: str) -> None:
    """Raise a UserError for weights that are infinite or not numbers."""
    values = [*network.named_parameters(), *network.named_buffers()]
    _refuse([f"not finite: {key}" for key, value in values if value.is_floating_point() and not value.isfinite().all()], name)


def _refuse(problems: list[str], name: str) -> None:
    if problems:
        others = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(
            f"the weights in {name!r} are damaged or of another model, so that features would mean nothing: "
            f"{', '.join(problems[:5])}{others}; export it again, or name another"
        )
