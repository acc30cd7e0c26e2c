"""SiameseIMForPreTraining: predict the dense features of one view from another, masked view."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from hssl_hf.models.configuration_siamese_im import SiameseIMConfig
from hssl_hf.models.modeling_base import EncoderModel
from hssl_hf.models.modeling_student_teacher import StudentTeacherPreTrainedModel
from hssl_hf.modules.backbone import Backbone, take
from hssl_hf.modules.decoder import Decoder, Projector
from hssl_hf.modules.position_embeddings import relative_geometry
from hssl_hf.modules.projection_heads import init_linear_layers
from hssl_hf.modules.visible_patches import prepare_base, split_patches
from hssl_hf.objectives import ObjectiveOutput, normalize, pixel_targets, reconstruction, unigrad


@dataclass
class SiameseIMForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss: scalar to minimize; None with `return_loss=False`.
        losses: its terms, scalars by name.
        metrics: monitored scalars by name, which are not part of the loss.
        prediction: (B, Q, D) the student's predictions (Q = 1 at the global level).
        target: (B, Q, D) their targets, normalized.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    metrics: dict[str, Tensor] | None = None
    prediction: Tensor | None = None
    target: Tensor | None = None


class SiameseIMNetwork(nn.Module):
    """A base model, the projector behind it and, in the student, the decoder.

    Each is built from a seed of its own, so that they do not change each other's initial values.
    """

    def __init__(self, config: SiameseIMConfig):
        super().__init__()
        depth, heads, norm = config.decoder_num_hidden_layers, config.decoder_num_attention_heads, config.decoder_norm
        seeds = torch.randint(2**62, (3,), device="cpu").tolist()
        with torch.random.fork_rng():
            torch.manual_seed(seeds[0])
            base = build_siamese_base(config)
            inner = config.decoder_hidden_size or base.width
            torch.manual_seed(seeds[1])
            projector = Projector(base.width, inner, config.projector_depth, heads, norm)
            init_linear_layers(projector, "xavier")
            torch.manual_seed(seeds[2])
            height, width = base.model.patch_embed.patch_size
            output = inner if config.target == "feature" else base.num_channels * height * width
            queries = {"relative": config.views == "different", "predict_positions": config.level == "dense"}
            decoder = Decoder(base.grid, inner, depth, heads, norm, output, **queries, final_norm=config.final_norm)
            init_linear_layers(decoder, "xavier")
            if decoder.mask_token is not None:
                nn.init.normal_(decoder.mask_token, std=0.02)
        self.base, self.projector, self.decoder = base, projector, decoder


def build_siamese_base(config: SiameseIMConfig) -> Backbone:
    """The base model of a configuration, without its final norm unless `final_norm`."""
    base = Backbone(config.backbone, config.image_size, config.backbone_kwargs, drop_path_rate=config.drop_path_rate)
    prepare_base(base, config.backbone)
    if not config.final_norm:
        base.norm = nn.Identity()
    return base


class SiameseIMForPreTraining(StudentTeacherPreTrainedModel):
    """Siamese image modeling: predict the teacher's features of one view from the visible patches of another view.

    In the paper's terms the student is the online branch and the teacher the target branch. The released code updates the
    teacher before the forward pass with the momentum of that step; updating it after the optimizer step with the momentum of
    the next one, as the training loop does, is the same sequence.

    Example (one step in the order of the released code):
        model = SiameseIMForPreTraining(SiameseIMConfig(backbone="vit_base_patch16_224")).train()
        model.update_teacher(momentum)
        output = model(pixel_values, bool_masked_pos, crop_boxes=crop_boxes)
        output.loss.backward()
        optimizer.step()

    With gradient accumulation, batch norm and the covariance of the loss are those of a micro-batch, as in the released code.

    Source: SiameseIM, arXiv 2206.01204; the released code where it differs from the paper.
    Differs: the class token, which the paper's equation 1 does not mention, passes encoder, projector and decoder and is left
        out of the dense loss, as in the released code.
    """

    config_class = SiameseIMConfig
    masked_views = 1
    equal_mask_counts = True
    teacher_updates_first = True
    default_network = "student"

    def __init__(self, config: SiameseIMConfig):
        super().__init__(config)
        self.num_views = 2 if config.views == "different" else 1
        self.student = SiameseIMNetwork(config)
        self.teacher = None
        if config.target == "feature":
            self.teacher = copy.deepcopy(self.student)
            self.teacher.decoder = None
        self._finish_init()

    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor,
        mask_indices: Tensor | None = None,
        crop_boxes: Tensor | None = None,
        return_loss: bool = True,
    ) -> SiameseIMForPreTrainingOutput:
        """
        Args:
            pixel_values: (V, B, 3, H, W) normalized views: the student's, then the one to predict (V = 1 if that is the same).
            bool_masked_pos: (1, B, h, w) bool over the patches of the first view, True = masked, as many in every image.
            mask_indices: (M,) positions of the masked patches in the flattened mask; avoids waiting for the device.
            crop_boxes: (V, B, 5) top, left, height, width and flipped of every view, needed with two (`relative_geometry`).
            return_loss: False leaves the total `loss` out.
        Raises:
            ValueError: if the number of views is not the method's, or images have different numbers of masked patches.
        """
        self.check_views(len(pixel_values), 0)
        masked_indices, visible_indices = split_patches(bool_masked_pos[0], mask_indices)
        geometry = None
        if self.config.views == "different" and self.config.level == "dense":
            if crop_boxes is None:
                raise ValueError("two views need crop_boxes (2, B, 5), their positions in the image; got None")
            geometry = relative_geometry(crop_boxes[0], crop_boxes[1])
        tokens, _ = self.student.base.encode_visible(pixel_values[0], visible_indices)
        tokens = self.student.projector(torch.cat([tokens.cls[:, None], tokens.patches], dim=1))
        prediction = self.student.decoder(tokens, visible_indices, masked_indices, geometry)
        target = self._target(pixel_values[-1], None if self.config.views == "different" else masked_indices)
        prediction, target, output = self._loss(prediction, target)
        loss = output.loss if return_loss else None
        return SiameseIMForPreTrainingOutput(loss, output.losses, output.metrics, prediction, target)

    @torch.no_grad()
    def _target(self, pixels: Tensor, masked_indices: Tensor | None) -> Tensor:
        """Targets of one view, for the masked patches or for all; features are not normalized yet."""
        config = self.config
        if config.target == "pixel":
            target = pixel_targets(pixels, self.student.base.model.patch_embed.patch_size, config.norm_pix_loss)
        else:
            tokens, _ = self.teacher.base(pixels)
            tokens = self.teacher.projector(torch.cat([tokens.cls[:, None], tokens.patches.flatten(1, 2)], dim=1))
            if config.level == "global":
                return tokens[:, :1]
            target = tokens[:, 1:]
        return target if masked_indices is None else take(target, masked_indices)

    def _loss(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor, ObjectiveOutput]:
        """Prediction and target as they are compared, and the loss."""
        config = self.config
        if config.normalize_prediction:
            prediction = normalize(prediction, "layer_norm")
        if config.target == "pixel":
            return prediction, target, reconstruction(prediction, target)
        target = normalize(target, config.loss_normalization)
        if config.loss_normalization == "batch_norm_l2":
            prediction = normalize(prediction, "batch_norm_l2")
        return prediction, target, unigrad(prediction.flatten(0, 1), target.flatten(0, 1), config.negative_weight)


class SiameseIMModel(EncoderModel):
    """The student's base on full images, for features or fine-tuning.

    Without `final_norm` the features that it was trained for are `hidden_states[-1]`, as in its export.
    """

    config_class = SiameseIMConfig
    base_model_prefix = SiameseIMForPreTraining.default_network
    build_base = staticmethod(build_siamese_base)
