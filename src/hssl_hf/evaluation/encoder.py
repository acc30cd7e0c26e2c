"""An exported backbone as an encoder, and raw pixels as a lower baseline."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, BitImageProcessor, PreTrainedModel

from hssl_hf.errors import UserError, reading

Encoder = Callable[[Tensor], tuple[Tensor, Tensor]]


def load_encoder(export: str | Path) -> tuple[Encoder, Callable]:
    """Load an exported folder or a Hub repository with the Auto classes alone.

    A configuration with `features: hidden_states` is that of a backbone trained without a final norm: its tokens are those
    of the last block. Of a ViT without the weights of a pooler the class token is taken.

    Returns:
        the encoder and the image processor that goes with it.
    Raises:
        UserError: if there is nothing to load, or a tensor is missing, of another shape or not finite.
    """
    name = str(export)
    with reading(repr(name), "it is neither an exported folder nor a Hub repository with a model and its image processor"):
        model, report = AutoModel.from_pretrained(name, output_loading_info=True, ignore_mismatched_sizes=True)
        processor = AutoImageProcessor.from_pretrained(name)
        if hasattr(processor, "data_config") and num_channels(processor) not in (1, 3):
            processor = BitImageProcessor.from_pretrained(name)  # timm's transforms take Pillow images, as RGBA or LA
    without_pooler = _require_weights(model.eval(), report, name)

    options = {"interpolate_pos_encoding": True} if model.config.model_type == "vit" else {}
    last_block = getattr(model.config, "features", None) == "hidden_states"

    @torch.inference_mode()
    def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
        output = model(pixels.to(model.device, model.dtype), output_hidden_states=last_block, **options)
        features = output.hidden_states[-1] if last_block else output.last_hidden_state
        cls = features[:, 0] if last_block or without_pooler else output.pooler_output.flatten(1)
        return cls.float(), _to_map(features, cls.shape[1]).float()

    return encode, processor


def _require_weights(model: PreTrainedModel, report: dict, name: str) -> bool:
    """Make sure that all weights were loaded and are numbers; returns whether those of a pooler are absent.

    Raises:
        UserError: if not.
    """
    missing = {str(key) for key in report.get("missing_keys", ())}
    pooler = {key for key in missing if key.startswith("pooler.")}
    problems = [f"missing: {key}" for key in sorted(missing - pooler)]
    problems += [f"of another shape: {key[0] if isinstance(key, tuple) else key}" for key in report.get("mismatched_keys", ())]
    values = [*model.named_parameters(), *model.named_buffers()]
    problems += [f"not finite: {key}" for key, value in values if value.is_floating_point() and not value.isfinite().all()]
    if problems:
        others = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(
            f"the weights in {name!r} are damaged or of another model, so that features would mean nothing: "
            f"{', '.join(problems[:5])}{others}; export it again, or name another"
        )
    return bool(pooler)


def num_channels(processor: Callable) -> int:
    """Channels of the images that an image processor of transformers normalizes; 3 if it holds no mean of each."""
    mean = getattr(processor, "image_mean", None) or getattr(processor, "data_config", {}).get("mean")
    return len(mean) if isinstance(mean, list | tuple) else 3


def _to_map(features: Tensor, width: int) -> Tensor:
    """Last hidden state of any stock model -> (B, h, w, D)."""
    if features.ndim == 3:
        side = int(features.shape[1] ** 0.5)
        return features[:, -side * side :].unflatten(1, (side, side))
    return features.permute(0, 2, 3, 1) if features.shape[1] == width else features


def raw_pixel_encoder(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The normalized pixels themselves, the image as one patch: cls (B, CHW), patches (B, 1, 1, CHW)."""
    flat = pixels.flatten(1)
    return flat, flat[:, None, None]
