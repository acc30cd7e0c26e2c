"""Encoders of timm's models."""

import inspect
from functools import partial

import timm
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, TimmWrapperImageProcessor

from hssl_hf.errors import UserError, reading
from hssl_hf.evaluation.encoder_contract import Encoder, Loaded, pair


class TimmEncoder(Encoder):
    """An encoder whose blocks are those that timm returns: of vision transformers the blocks, of others the stages, in ResNets
    and some others preceded by the stem. A block whose class token timm does not return is pooled to the mean.
    """

    def __init__(self, loaded: Loaded):
        model = loaded.network
        if not hasattr(model, "forward_features"):
            raise UserError(
                f"{loaded.name!r}: timm's {type(model).__name__} has no representation of an image; choose another model"
            )
        infos = list(model.feature_info)
        size = getattr(getattr(model, "patch_embed", None), "img_size", None) or model.pretrained_cfg["input_size"][1:]
        super().__init__(loaded, [info["num_chs"] for info in infos], [info["reduction"] for info in infos], pair(size))
        self.width = model.num_features  # of the patches, also where a convolution follows the last stage
        self.prefix = getattr(model, "num_prefix_tokens", 0)
        function = getattr(model, "forward_intermediates", None)
        self._arguments = set(inspect.signature(function).parameters) if function else None

    def _encode(self, pixels: Tensor, blocks: list[int], norm: bool) -> dict[int, tuple[Tensor, Tensor]]:
        last, model = self.num_blocks - 1, self.network
        if blocks == [last] and norm:
            return {last: self._last(model.forward_features(pixels), pixels)}
        if self._arguments is None:
            raise UserError(
                f"timm's {type(model).__name__} in {self.name!r} returns the last features only; choose another model"
            )
        options = {"return_prefix_tokens": True} if "return_prefix_tokens" in self._arguments else {}
        features, maps = model.forward_intermediates(pixels, indices=blocks, norm=norm, **options)
        outputs = {}
        for number, values in zip(blocks, maps, strict=True):
            values, prefix = values if isinstance(values, tuple) else (values, None)
            final = norm and number == last
            of_tokens = norm and getattr(features, "ndim", 0) == 3 and values.shape[1] == self.width
            outputs[number] = self._last(features, pixels) if final else self._block(values, prefix, of_tokens)
        return outputs

    def _last(self, features: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Final features in the layout of their architecture -> cls and patches."""
        patches = self._to_map(features, pixels)
        return self.network.forward_head(features, pre_logits=True), patches

    def _block(self, values: Tensor, prefix: Tensor | None, pool: bool) -> tuple[Tensor, Tensor]:
        """(B, D, h, w) and (B, P, D) tokens in front of the patches -> cls, by the model's own pooling or not, and patches."""
        patches = values.permute(0, 2, 3, 1)
        tokens = patches.flatten(1, 2)
        if prefix is not None:
            tokens = torch.cat([prefix, tokens], dim=1)
        if pool and tokens.shape[1] - patches.shape[1] * patches.shape[2] == self.prefix:
            return self.network.forward_head(tokens, pre_logits=True), patches
        pools_class_token = prefix is not None and getattr(self.network, "global_pool", None) == "token"
        return prefix[:, 0] if pools_class_token else patches.mean((1, 2)), patches

    def _to_map(self, features: Tensor, pixels: Tensor) -> Tensor:
        if isinstance(features, Tensor) and features.ndim == 4:
            return features if getattr(self.network, "output_fmt", "NCHW") == "NHWC" else features.permute(0, 2, 3, 1)
        height, width = (side // self.stride for side in pixels.shape[-2:])
        if not isinstance(features, Tensor) or features.ndim != 3 or features.shape[1] - self.prefix != height * width:
            got = f"features {tuple(features.shape)}" if isinstance(features, Tensor) else f"a {type(features).__name__}"
            raise UserError(
                f"{self.name!r}: expected one map of {height} x {width} patches from timm's {type(self.network).__name__}, got "
                f"{got}; choose another model"
            )
        return features[:, self.prefix :].unflatten(1, (height, width))


def timm_encoder(name: str, model: nn.Module, rebuild: partial) -> Encoder:
    """The encoder of a model of timm without classifier."""
    return TimmEncoder(Loaded(name, model, rebuild))


def load_timm(name: str) -> tuple[Encoder, TimmWrapperImageProcessor]:
    """Load trained weights through timm, with the transforms of their evaluation.

    Args:
        name: of a model with weights in timm, `hf-hub:user/name`, or `local-dir:path`.
    Raises:
        UserError: if timm has no such model or no weights for it.
    """
    advice = (
        "expected timm:NAME of a model with weights (timm.list_pretrained()), which needs the Hub unless it is in the cache"
    )
    with reading(f"'timm:{name}'", advice):
        options = {"num_classes": 0, **dynamic_size(name, {})}
        model = timm.create_model(name, pretrained=True, **options)
        processor = TimmWrapperImageProcessor(timm.data.resolve_model_data_config(model))
    rebuild = partial(timm.create_model, name, pretrained=False, **options)
    return timm_encoder(f"timm:{name}", model, rebuild), processor


def wrapped_arguments(config: PreTrainedConfig) -> dict:
    """Arguments for timm's model in a `timm_wrapper` configuration."""
    arguments = {key: value for key, value in (config.model_args or {}).items() if key != "num_classes"}  # which is set to 0
    return {**arguments, **dynamic_size(config.architecture, arguments)}


def dynamic_size(name: str, arguments: dict) -> dict[str, bool]:
    """The argument that lets a model of timm take any image size, if it has one."""
    with torch.device("meta"), torch.random.fork_rng():
        model = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    return {"dynamic_img_size": True} if hasattr(model, "dynamic_img_size") else {}
