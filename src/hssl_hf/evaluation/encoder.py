"""Loading a backbone of any library as an encoder, the same without training, and raw pixels as a lower baseline."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, BitImageProcessor, PreTrainedConfig, PreTrainedModel

from hssl_hf.errors import UserError
from hssl_hf.evaluation.encoder_contract import Encoder
from hssl_hf.evaluation.load_report import reading_model, require_finite, require_weights
from hssl_hf.evaluation.timm_encoder import load_timm, timm_encoder, wrapped_arguments
from hssl_hf.evaluation.transformers_encoder import (
    HIERARCHICAL,
    IMAGE_TOWERS,
    VISION_TRANSFORMERS,
    is_readable,
    model_arguments,
    own_encoder,
    transformers_encoder,
)

EXPECTED = "it is neither an exported folder nor a Hub repository with a model and its image processor"
logger = logging.getLogger(__name__)


def load_encoder(name: str | Path, revision: str | None = None, token: str | bool | None = None) -> tuple[Encoder, Callable]:
    """Load an exported folder, a repository of the Hub, or `timm:NAME`, without running code of a repository.

    Weights become float32 on the CPU; `to` moves the encoder. Weights of a pooler may be missing: of a ViT it is not used, and
    that of BEiT and data2vec is then a layer norm without trained scale and shift, with a warning.

    Args:
        name: folder; user/name; or timm: and the name of a model with weights in timm, `hf-hub:user/name` or `local-dir:path`.
        revision: branch, tag or commit of a repository, such as `timm` or `training` of those that this package pushes.
        token: as in transformers; timm reads the environment's.
    Returns:
        the encoder and the image processor that goes with it.
    Raises:
        UserError: if there is nothing to load, the model is no image encoder that can be read here, or a tensor is missing,
            unknown, of another shape or not finite.
    """
    name = str(name)
    if name.startswith("timm:"):
        if revision is not None or token is not None:
            raise UserError(
                f"{name!r}: expected neither revision nor token, which timm takes from timm:hf-hub:user/name@revision and from "
                "the environment's HF_TOKEN; leave them out"
            )
        encoder, processor = load_timm(name.removeprefix("timm:"))
        require_finite(encoder, name)
        return encoder, processor
    if (name.count("/") > 1 or name.startswith((".", "/", "~"))) and not Path(name).exists():
        raise UserError(f"there is no folder {name!r}; expected an exported folder, user/name of the Hub, or timm:NAME")
    source = {"revision": revision, "token": token, "trust_remote_code": False}
    source = {key: value for key, value in source.items() if value is not None}
    config = _load_config(name, source)
    options = {"output_loading_info": True, "ignore_mismatched_sizes": True, "dtype": torch.float32}
    with reading_model(name, EXPECTED):
        model, report = AutoModel.from_pretrained(
            name, config=config, **options, **source, **model_arguments(config.model_type)
        )
        processor = AutoImageProcessor.from_pretrained(name, **source)
        if hasattr(processor, "data_config") and num_channels(processor) not in (1, 3):
            processor = BitImageProcessor.from_pretrained(name, **source)  # timm's transforms take Pillow images, as RGBA or LA
    require_weights(report, name, model.config.model_type)
    require_finite(model, name)
    return _encoder_of(name, model), processor


def untrained(encoder: Encoder, seed: int) -> Encoder:
    """The same architecture with new weights, initialized as its library does, on the CPU; a lower baseline.

    Args:
        encoder: of which the configuration is taken.
        seed: of the weights, for the record of the evaluation.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = encoder.rebuild()
    if isinstance(network, PreTrainedModel):
        return _encoder_of(encoder.name, network)
    return timm_encoder(encoder.name, network, encoder.rebuild)


def _encoder_of(name: str, model: PreTrainedModel) -> Encoder:
    """The encoder of a model that `AutoModel` gives."""
    config = model.config
    if config.model_type == "timm_wrapper":
        rebuild = partial(timm.create_model, config.architecture, num_classes=0, **(config.model_args or {}))
        return timm_encoder(name, model.timm_model, rebuild)
    if not _is_own(config):
        return transformers_encoder(name, model)
    if model.base.is_transformer:
        return own_encoder(name, model)
    return timm_encoder(name, _own_timm_model(model), partial(_rebuild_own, type(model), config))


def _own_timm_model(model: PreTrainedModel) -> nn.Module:
    """timm's model in one of this package's, with its final norm, which the base keeps outside."""
    base = model.base
    if hasattr(base.model, "norm"):
        base.model.norm = base.norm
    return base.model


def _rebuild_own(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> nn.Module:
    return _own_timm_model(model_class(config))


def _load_config(name: str, source: dict) -> PreTrainedConfig:
    """The configuration of a model that can be read.

    Raises:
        UserError: if there is none, or it is of another model.
    """
    with reading_model(name, EXPECTED):
        try:
            config = AutoConfig.from_pretrained(name, **source)
        except ValueError as error:
            if "trust_remote_code" not in str(error):
                raise
            raise UserError(
                f"{name!r} needs code of its own repository, which is never run here; name a model whose class is part of "
                "transformers, or timm:NAME"
            ) from error
    if config.model_type == "timm_wrapper":
        with reading_model(name, EXPECTED):
            config.model_args = wrapped_arguments(config)
    elif not is_readable(config.model_type) and not _is_own(config):
        types = sorted({*VISION_TRANSFORMERS, *HIERARCHICAL, *IMAGE_TOWERS, "timm_wrapper"})
        raise UserError(
            f"{name!r} holds a model of type {config.model_type!r} ({', '.join(config.architectures or ['no class named'])}), "
            f"which is no image encoder that can be read; expected one of {', '.join(types)}, a `training` revision of this "
            "package, or timm:NAME"
        )
    return config


def _is_own(config: PreTrainedConfig) -> bool:
    """Whether a configuration is one of this package's, which know themselves to the Auto classes."""
    return type(config).__module__.startswith("hssl_hf.")


def num_channels(processor: Callable) -> int:
    """Channels of the images that an image processor of transformers normalizes; 3 if it holds no mean of each."""
    mean = getattr(processor, "image_mean", None) or getattr(processor, "data_config", {}).get("mean")
    return len(mean) if isinstance(mean, list | tuple) else 3


def raw_pixel_encoder(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The normalized pixels themselves, the image as one patch: cls (B, CHW), patches (B, 1, 1, CHW)."""
    flat = pixels.flatten(1)
    return flat, flat[:, None, None]
