"""SiameseIMForPreTraining: predict one view from another, masked one."""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput

from hssl_hf.models.configuration_siamese_im import SiameseIMConfig
from hssl_hf.models.modeling_student_teacher import StudentTeacherModel
from hssl_hf.modules.backbone import Backbone, take
from hssl_hf.modules.decoder import Decoder, Projector
from hssl_hf.modules.position_embeddings import relative_geometry
from hssl_hf.modules.visible_patches import init_weights, prepare_base, require_transformer, split
from hssl_hf.objectives import ObjectiveOutput, normalize_targets, pixel_targets, reconstruction, unigrad


@dataclass
class SiameseIMOutput(ModelOutput):
    """
    Args:
        loss: scalar to minimise.
        parts: its terms and what is worth watching, by name.
        prediction: (B, Q, D) what the student says of the patches asked about (Q = 1 at the global level).
        target: (B, Q, D) what it should have said, normalised.
    """

    loss: Tensor | None = None
    parts: dict[str, Tensor] | None = None
    prediction: Tensor | None = None
    target: Tensor | None = None


class Network(nn.Module):
    """A base model, the projector behind it and, in the student, the decoder."""

    def __init__(self, base: Backbone, projector: Projector, decoder: Decoder | None):
        super().__init__()
        self.base, self.projector, self.decoder = base, projector, decoder


class SiameseIMForPreTraining(StudentTeacherModel):
    """Siamese image modeling: the student sees some patches of one view and predicts what the teacher says of all of another.

    In the paper's words the student is the online branch and the teacher the target branch. The released code moves the
    teacher in front of its forward with the momentum of that step; to move it after the optimizer step with the momentum of
    the next one, as the training loop does, is the same sequence.

    Example (one step in the order of the released code):
        model = SiameseIMForPreTraining(SiameseIMConfig(backbone="vit_base_patch16_224")).train()
        model.update_teacher(momentum)
        output = model(global_pixels, masks, crops=crops)
        output.loss.backward()
        optimizer.step()

    Where gradients accumulate, batch norm and the covariance of the loss are those of a part, as in the released code.

    Source: SiameseIM, arXiv 2206.01204; released code where paper and code part.
    Differs: the class token, on which the paper's equation 1 is silent, passes encoder, projector and decoder and is left out
        of the dense loss, as in the released code.
    """

    config_class = SiameseIMConfig
    masked_views = 1
    counted_masks = True
    moves_before_forward = True
    kept_network = "student"

    def __init__(self, config: SiameseIMConfig):
        super().__init__(config)
        self.num_views = 2 if config.views == "different" else 1
        self.student = _build_student(config)
        self.teacher = None
        if config.target == "feature":
            decoder, self.student.decoder = self.student.decoder, None
            self.teacher = copy.deepcopy(self.student)
            self.student.decoder = decoder
        self.complete()

    def forward(
        self,
        global_pixels: Tensor,
        masks: Tensor,
        masked_indices: Tensor | None = None,
        crops: Tensor | None = None,
    ) -> SiameseIMOutput:
        """
        Args:
            global_pixels: (V, B, 3, H, W) normalised views: the student's, then the one to predict (V = 1 if that is the same).
            masks: (1, B, h, w) bool over the patches of the first view, True = hidden, in every image equally many.
            masked_indices: (M,) positions of the hidden patches in the flattened masks; saves waiting for the device.
            crops: (V, B, 5) top, left, height, width and mirrored of every view (`relative_geometry`); needed with two views.
        Raises:
            ValueError: if the number of views is not the method's, or images hide different numbers of patches.
        """
        self.check_views(len(global_pixels), 0)
        hidden, kept = split(masks[0], masked_indices)
        geometry = None
        if self.config.views == "different" and self.config.level == "dense":
            if crops is None:
                raise ValueError("two views need crops, to know how they lie to each other")
            geometry = relative_geometry(crops[0], crops[1])
        tokens, _ = self.student.base.visible(global_pixels[0], kept)
        tokens = self.student.projector(torch.cat([tokens.cls[:, None], tokens.patches], dim=1))
        prediction = self.student.decoder(tokens, kept, hidden, geometry)
        target = self._target(global_pixels[-1], None if self.config.views == "different" else hidden)
        prediction, output = self._loss(prediction, target)
        return SiameseIMOutput(loss=output.loss, parts=output.parts, prediction=prediction, target=target)

    @torch.no_grad()
    def _target(self, pixels: Tensor, hidden: Tensor | None) -> Tensor:
        """What the student should say of one view: of the hidden patches, or of all."""
        config = self.config
        if config.target == "pixel":
            target = pixel_targets(pixels, self.student.base.model.patch_embed.patch_size, config.normalize_pixels)
        else:
            tokens, _ = self.teacher.base(pixels)
            tokens = self.teacher.projector(torch.cat([tokens.cls[:, None], tokens.patches.flatten(1, 2)], dim=1))
            if config.level == "global":
                return normalize_targets(tokens[:, :1], config.loss_normalization)
            target = normalize_targets(tokens[:, 1:], config.loss_normalization)
        return target if hidden is None else take(target, hidden)

    def _loss(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, ObjectiveOutput]:
        config = self.config
        if config.student_norm:
            prediction = F.layer_norm(prediction.float(), prediction.shape[-1:])
        if config.target == "pixel":
            return prediction, reconstruction(prediction, target)
        if config.loss_normalization == "moco":
            prediction = normalize_targets(prediction, "moco")
        return prediction, unigrad(prediction.flatten(0, 1), target.flatten(0, 1), config.negative_weight)


def _build_student(config: SiameseIMConfig) -> Network:
    """Base, projector and decoder, each from a seed of its own, so that none changes another's values."""
    seeds = torch.randint(2**62, (3,), device="cpu").tolist()
    with torch.random.fork_rng():
        torch.manual_seed(seeds[0])
        base = Backbone(config.backbone, config.image_size, config.backbone_kwargs, drop_path=config.drop_path)
        require_transformer(base, config.backbone)
        prepare_base(base)
        if not config.final_norm:
            base.norm = nn.Identity()
        inner = config.decoder_width or base.width
        torch.manual_seed(seeds[1])
        projector = Projector(base.width, inner, config.projector_depth, config.decoder_heads, config.norm)
        projector.apply(init_weights)
        torch.manual_seed(seeds[2])
        height, width = base.model.patch_embed.patch_size
        decoder = Decoder(
            base.grid,
            inner,
            config.decoder_depth,
            config.decoder_heads,
            config.norm,
            output=inner if config.target == "feature" else 3 * height * width,
            relative=config.views == "different",
            asks=config.level == "dense",
            final_norm=config.final_norm,
        )
        decoder.apply(init_weights)
        if decoder.mask_token is not None:
            nn.init.normal_(decoder.mask_token, std=0.02)
    return Network(base, projector, decoder)
