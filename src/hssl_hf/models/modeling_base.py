"""What all models share: how they are loaded, and the encoder that is kept after the pre-training."""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch.nn.functional as F
from timm.layers import use_fused_attn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hssl_hf.models.configuration_base import PreTrainingConfig
from hssl_hf.modules.backbone import Backbone, has_norm, repeated_blocks


class BackbonePreTrainedModel(PreTrainedModel):
    """A transformers model around a `Backbone`: `self.base`, or `self.student.base` in a model with a teacher.

    Modules initialize themselves when they are built; a subclass calls `post_init` at the end of its constructor.
    """

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    gradient_checkpointing = False
    _supports_sdpa = True

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers; what the checkpoint lacks, or has in another shape, is initialized as in a new model."""
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model._restore({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
        return (model, info) if output_loading_info else model

    def post_init(self) -> None:
        """As in transformers, with the flags that depend on the timm model."""
        self._without_storage = next(self.parameters()).is_meta  # while from_pretrained builds it
        self._no_split_modules = repeated_blocks(self._trained())
        self._use_fused_attention()
        super().post_init()

    def set_attn_implementation(self, attn_implementation: str | dict, *args, **kwargs) -> None:
        """As in transformers: "eager", or "sdpa", which timm uses unless `timm.layers.set_fused_attn` forbids it."""
        super().set_attn_implementation(attn_implementation, *args, **kwargs)
        self._use_fused_attention()

    def get_input_embeddings(self) -> None:
        """None: there is no token embedding that a training engine could treat apart."""

    def _trained(self) -> nn.Module:
        """The network that is trained, whose `base` is the `Backbone`."""
        return self

    def _restore(self, lost: set[str]) -> None:
        """Give parameters and buffers that a checkpoint lacks the values of a new model."""
        if lost:
            fresh = type(self)(self.config).state_dict()
            self.load_state_dict({key: fresh[key] for key in lost}, strict=False)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing but non-persistent buffers after loading: modules initialize themselves when they are built."""
        if self._without_storage and hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()

    def _use_fused_attention(self) -> None:
        """Follow the configuration in every module; timm by itself leaves Swin's attention without `sdpa`."""
        fused = self.config._attn_implementation != "eager" and bool(use_fused_attn())
        for module in self.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = fused

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable | None = None, every_n_layers: int = 1
    ) -> None:
        default = gradient_checkpointing_func in (None, checkpoint)
        if isinstance(function := gradient_checkpointing_func, partial):
            default = (function.func, function.args, function.keywords) == (checkpoint, (), {"use_reentrant": False})
        if enable and not (default and every_n_layers == 1):
            raise ValueError(
                "timm checkpoints every block, with use_reentrant=False; expected no gradient_checkpointing_kwargs or "
                f"{{'use_reentrant': False}}, every_n_layers=1 and no offload, got {gradient_checkpointing_func}, "
                f"every_n_layers={every_n_layers}"
            )
        trained = self._trained()
        try:
            trained.base.model.set_grad_checkpointing(enable)
        except (AssertionError, AttributeError) as error:
            raise ValueError(f"timm cannot checkpoint the blocks of {self.config.backbone!r}: {error}") from error
        for module in trained.modules():
            if hasattr(module, "grad_checkpointing"):
                module.grad_checkpointing = enable
        self.gradient_checkpointing = enable


class EncoderModel(BackbonePreTrainedModel):
    """The base that a method keeps, with the outputs of the stock model that `export_backbone` writes.

    It loads the full checkpoint of a pre-training, of which it reads the base of the method's `default_network`, and its own
    checkpoints. A subclass sets `config_class`, `base_model_prefix` to that network's name, and `build_base`.
    """

    build_base: Callable[[PreTrainingConfig], Backbone]
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^(student|teacher|objectives?)\."]

    def __init__(self, config: PreTrainingConfig):
        super().__init__(config)
        self.base = self.build_base(config)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | tuple:
        """
        Args:
            pixel_values: (B, 3, H, W) normalized images.
            interpolate_pos_encoding: let a vision transformer take other image sizes than `config.image_size`; other
                architectures take every size that they can compute.
            output_hidden_states: also return the hidden states; None for `config.output_hidden_states`.
            return_dict: False for a tuple; None for `config.return_dict`.
        Returns:
            last_hidden_state: of vision transformers (B, 1 + N, C) class token and patches, normalized; of convolutional
                networks the feature map (B, C, h, w); of others, such as Swin, the tokens (B, N, C).
            pooler_output: (B, C) the normalized class token, or the pooled features.
            hidden_states: of vision transformers (B, 1 + N, C) embeddings and the output of every block, without the final
                norm; of others the stages' feature maps, as timm's `forward_intermediates` returns them.

            A base without a final norm (SiameseIM) is normalized without scale and shift, as in its export; the features that
            it was trained for are `hidden_states[-1]`.
        Raises:
            ValueError: for another image size without interpolation, or hidden states that timm's model does not return.
        """
        config, base = self.config, self.base
        with_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        pixels = pixel_values.to(self.dtype)
        if base.is_transformer:
            size = tuple(pixels.shape[-2:])
            if not interpolate_pos_encoding and size != (config.image_size, config.image_size):
                raise ValueError(
                    f"expected images of {config.image_size} x {config.image_size} pixels, got {size[0]} x {size[1]}; resize "
                    "them, or pass interpolate_pos_encoding=True"
                )
            values = self._encode_tokens(pixels, with_states)
        else:
            values = self._encode_maps(pixels, with_states)
        output = BaseModelOutputWithPooling(*values)
        return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _encode_tokens(self, pixels: Tensor, with_states: bool) -> tuple[Tensor, Tensor, tuple[Tensor, ...] | None]:
        base = self.base
        states = deque(base.hidden_states(pixels), maxlen=None if with_states else 1)
        if has_norm(base):
            tokens = base.norm(states[-1])
        else:
            tokens = F.layer_norm(states[-1], (base.width,), eps=base.model.blocks[0].norm1.eps)
        return tokens, tokens[:, 0], tuple(states) if with_states else None

    def _encode_maps(self, pixels: Tensor, with_states: bool) -> tuple[Tensor, Tensor, tuple[Tensor, ...] | None]:
        model, states = self.base.model, None
        if not with_states:
            features = model.forward_features(pixels)
        elif hasattr(model, "forward_intermediates"):
            features, states = model.forward_intermediates(pixels)
        else:
            raise ValueError(f"timm's {self.config.backbone!r} returns no hidden states; leave output_hidden_states at False")
        features = self.base.norm(features)
        pooled = model.forward_head(features, pre_logits=True)
        if getattr(model, "output_fmt", "NCHW") == "NHWC":
            features = features.flatten(1, 2)
        return features, pooled, None if states is None else tuple(states)
