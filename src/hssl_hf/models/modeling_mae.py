"""HSSLMAEForPreTraining: reconstruct pixels and representations of masked patches, with or without an auxiliary head."""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput

from hssl_hf.models.configuration_mae import HSSLMAEConfig
from hssl_hf.models.modeling_base import EncoderModel
from hssl_hf.models.modeling_student_teacher import StudentTeacherPreTrainedModel
from hssl_hf.models.modeling_two_branch import Auxiliary, build_auxiliary, build_base
from hssl_hf.modules.backbone import Backbone, take
from hssl_hf.modules.decoder import Decoder, Projector
from hssl_hf.modules.projection_heads import init_linear_layers
from hssl_hf.modules.tokens import Tokens
from hssl_hf.modules.visible_patches import prepare_base, scatter_visible, split_patches
from hssl_hf.objectives import pixel_targets, reconstruction


@dataclass
class HSSLMAEForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss: scalar to minimize; None with `return_loss=False`.
        losses: its terms by name: "pixels", and "representations" with a head.
        metrics: monitored scalars by name; none here.
        teacher_pooler_output: (B, C) the teacher's class tokens; None without a teacher.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    metrics: dict[str, Tensor] | None = None
    teacher_pooler_output: Tensor | None = None


class EncoderWithHead(nn.Module):
    """The base and the auxiliary head behind it: together a teacher."""

    def __init__(self, base: Backbone, auxiliary: Auxiliary | None):
        super().__init__()
        self.base, self.auxiliary = base, auxiliary

    def forward(self, pixels: Tensor) -> tuple[Tokens, Tensor]:
        """(B, 3, H, W) images without a mask -> tokens of the base, and the head's patches (B, N, C')."""
        tokens, features = self.base(pixels)
        return tokens, self.auxiliary(features).patches.flatten(1, 2)


class MaskedDecoder(nn.Module):
    """A projector and a decoder behind it: visible tokens -> predictions for the masked patches."""

    def __init__(self, width: int, base: Backbone, config: HSSLMAEConfig, depth: int, output: int):
        super().__init__()
        inner, heads = config.decoder_hidden_size, config.decoder_num_attention_heads
        self.projector = Projector(width, inner, 0, heads, "layer")
        self.decoder = Decoder(base.grid, inner, depth, heads, "layer", output, final_norm=True)
        init_linear_layers(self, "xavier")
        nn.init.normal_(self.decoder.mask_token, std=0.02)

    def hidden_states(self, tokens: Tensor, visible_indices: Tensor, masked_indices: Tensor) -> Tensor:
        """(B, 1 + K, width) -> (B, Q, inner) the decoder's last hidden states at the masked positions."""
        return self.decoder.hidden_states(self.projector(tokens), visible_indices, masked_indices)


class MAEStudent(EncoderWithHead):
    """Base and head with a decoder each, and the token that fills masked positions in the head's map.

    Each is built from a seed of its own, so that they do not change each other's initial values.
    """

    def __init__(self, config: HSSLMAEConfig):
        seeds = torch.randint(2**62, (4,), device="cpu").tolist()
        with torch.random.fork_rng():
            torch.manual_seed(seeds[0])
            base = build_mae_base(config)
            super().__init__(base, build_auxiliary(config, base, seeds[1]))
            torch.manual_seed(seeds[2])
            height, width = base.model.patch_embed.patch_size
            outputs = base.num_channels * height * width
            encoded = base.width if self.auxiliary is None else self.auxiliary.width
            self.pixels = MaskedDecoder(encoded, base, config, config.decoder_num_hidden_layers, outputs)
            self.representations = self.filler = None
            if self.auxiliary is not None:
                torch.manual_seed(seeds[3])
                output = config.decoder_hidden_size if config.representation_target == "decoder" else self.auxiliary.width
                self.representations = MaskedDecoder(base.width, base, config, config.representation_decoder_depth, output)
                if config.auxiliary_mask_fill == "token":
                    self.filler = nn.Parameter(torch.zeros(1, base.width))


def build_mae_base(config: HSSLMAEConfig) -> Backbone:
    """The base model of a configuration, which encodes visible patches."""
    base = build_base(config)
    prepare_base(base, config.backbone)
    return base


class HSSLMAEForPreTraining(StudentTeacherPreTrainedModel):
    """Masked image modeling with a heterogeneous auxiliary head.

    The base encodes the visible patches. The head reads them in a dense map and reconstructs the pixels of the masked ones; the
    base predicts, from its own tokens, the head's representations of the masked patches of the full image. Without a head the
    base reconstructs the pixels, which is MAE.

    Example:
        model = HSSLMAEForPreTraining(HSSLMAEConfig(backbone="vit_small_patch16_224", auxiliary="convnext"))
        output = model(pixel_values, bool_masked_pos)  # (1, B, 3, H, W) and (1, B, h, w), 75 % of the patches masked

    Source: HSSL, appendix D; MAE, arXiv 2111.06377.
    """

    config_class = HSSLMAEConfig
    num_views = 1
    masked_views = 1
    equal_mask_counts = True
    default_network = "student"

    def __init__(self, config: HSSLMAEConfig):
        super().__init__(config)
        self.student = MAEStudent(config)
        self.teacher = None
        if config.auxiliary is not None and config.representation_target == "teacher":
            self.teacher = EncoderWithHead(copy.deepcopy(self.student.base), copy.deepcopy(self.student.auxiliary))
        self._finish_init()

    def forward(
        self, pixel_values: Tensor, bool_masked_pos: Tensor, mask_indices: Tensor | None = None, return_loss: bool = True
    ) -> HSSLMAEForPreTrainingOutput:
        """
        Args:
            pixel_values: (1, B, 3, H, W) normalized images.
            bool_masked_pos: (1, B, h, w) bool over the patches, True = masked, as many in every image.
            mask_indices: (M,) positions of the masked patches in the flattened mask; avoids waiting for the device.
            return_loss: False leaves the total `loss` out.
        Raises:
            ValueError: if images have different numbers of masked patches.
        """
        self.check_views(len(pixel_values), 0)
        student, pixels = self.student, pixel_values[0]
        masked, visible = split_patches(bool_masked_pos[0], mask_indices)
        tokens, features = student.base.encode_visible(pixels, visible)
        sequence = torch.cat([tokens.cls[:, None], tokens.patches], dim=1)
        hidden = student.pixels.hidden_states(self._pixel_decoder_input(sequence, features, visible), visible, masked)
        target = pixel_targets(pixels, student.base.model.patch_embed.patch_size, self.config.norm_pix_loss)
        loss = reconstruction(student.pixels.decoder.prediction(hidden), take(target, masked)).loss
        losses, teacher_cls = {"pixels": loss}, None
        if student.auxiliary is not None:
            target, teacher_cls = self._representation_target(pixels, masked, hidden)
            states = student.representations.hidden_states(sequence, visible, masked)
            losses["representations"] = F.mse_loss(student.representations.decoder.prediction(states).float(), target)
            loss = loss + self.config.representation_weight * losses["representations"]
        return HSSLMAEForPreTrainingOutput(loss if return_loss else None, losses, {}, teacher_cls)

    def _pixel_decoder_input(self, sequence: Tensor, features: Tensor, visible: Tensor) -> Tensor:
        """(B, 1 + K, C') class token and visible patches of the head, or of the base where there is no head."""
        student = self.student
        if student.auxiliary is None:
            return sequence
        filler = features.new_zeros(1, features.shape[-1]) if student.filler is None else student.filler
        head = student.auxiliary(scatter_visible(features, visible, student.base.grid, filler))
        return torch.cat([head.cls[:, None], take(head.patches.flatten(1, 2), visible)], dim=1)

    @torch.no_grad()
    def _representation_target(self, pixels: Tensor, masked: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, Q, D) of mean 0 and variance 1, the base's targets for the masked patches; and the teacher's class tokens."""
        if self.config.representation_target == "decoder":
            return F.layer_norm(hidden.float(), hidden.shape[-1:]), None
        tokens, patches = (self.student if self.teacher is None else self.teacher)(pixels)
        target = take(patches, masked).float()
        return F.layer_norm(target, target.shape[-1:]), None if self.teacher is None else tokens.cls


class HSSLMAEModel(EncoderModel):
    """The student's base on full images, for features or fine-tuning."""

    config_class = HSSLMAEConfig
    base_model_prefix = HSSLMAEForPreTraining.default_network
    build_base = staticmethod(build_mae_base)
