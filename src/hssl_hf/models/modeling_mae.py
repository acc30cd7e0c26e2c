"""MAEForPreTraining: pixels and representations of hidden patches, with an auxiliary head or without."""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput

from hssl_hf.models.configuration_mae import MAEConfig
from hssl_hf.models.modeling_student_teacher import StudentTeacherModel
from hssl_hf.models.modeling_two_branch import Auxiliary, build_auxiliary, build_base
from hssl_hf.modules.backbone import Backbone, take
from hssl_hf.modules.decoder import Decoder, Projector
from hssl_hf.modules.tokens import Tokens
from hssl_hf.modules.visible_patches import fill, init_weights, prepare_base, require_transformer, split
from hssl_hf.objectives import pixel_targets, reconstruction


@dataclass
class MAEOutput(ModelOutput):
    """
    Args:
        loss: scalar to minimise.
        parts: its terms by name: "pixels", and "representations" with a head.
        features: (B, C) the teacher's class tokens, to be watched; None without a teacher.
    """

    loss: Tensor | None = None
    parts: dict[str, Tensor] | None = None
    features: Tensor | None = None


class Pair(nn.Module):
    """The base and the auxiliary head behind it: all that a teacher has."""

    def __init__(self, base: Backbone, auxiliary: Auxiliary | None):
        super().__init__()
        self.base, self.auxiliary = base, auxiliary

    def forward(self, pixels: Tensor) -> tuple[Tokens, Tensor]:
        """(B, 3, H, W) whole images -> tokens of the base, and (B, N, C') what the head says of every patch."""
        tokens, features = self.base(pixels)
        return tokens, self.auxiliary(features).patches.flatten(1, 2)


class Branch(nn.Module):
    """A projector and a decoder behind it: visible tokens -> answers about the hidden patches."""

    def __init__(self, width: int, base: Backbone, config: MAEConfig, depth: int, output: int):
        super().__init__()
        inner, heads = config.decoder_width, config.decoder_heads
        self.projector = Projector(width, inner, 0, heads, "layer")
        self.decoder = Decoder(base.grid, inner, depth, heads, "layer", output, relative=False, asks=True, final_norm=True)
        self.apply(init_weights)
        nn.init.normal_(self.decoder.mask_token, std=0.02)

    def hidden(self, tokens: Tensor, kept: Tensor, hidden: Tensor) -> Tensor:
        """(B, 1 + K, width) -> (B, Q, inner) the decoder's last hidden states at the hidden positions."""
        return self.decoder.hidden(self.projector(tokens), kept, hidden)


class Student(Pair):
    """Base and head with a decoder each, and the token that stands for hidden patches in the head's map."""

    def __init__(self, base: Backbone, auxiliary: Auxiliary | None, pixels: Branch, representations: Branch | None):
        super().__init__(base, auxiliary)
        self.pixels, self.representations = pixels, representations
        self.filler = None


class MAEForPreTraining(StudentTeacherModel):
    """Masked image modeling with a heterogeneous auxiliary head.

    The base encodes the visible patches. The head reads them in a dense map and reconstructs the pixels of the hidden ones; the
    base predicts, from its own tokens, what the head says of the hidden patches of the whole image. Without a head the base
    reconstructs the pixels, which is MAE.

    Example:
        model = MAEForPreTraining(MAEConfig(backbone="vit_small_patch16_224", auxiliary="convnext"))
        output = model(global_pixels, masks)  # (1, B, 3, H, W) and (1, B, h, w), 75 % of the patches hidden

    Source: HSSL, section 4.1; MAE, arXiv 2111.06377.
    """

    config_class = MAEConfig
    num_views = 1
    masked_views = 1
    counted_masks = True
    kept_network = "student"

    def __init__(self, config: MAEConfig):
        super().__init__(config)
        self.student = _build_student(config)
        self.teacher = None
        if config.auxiliary is not None and config.representation_target == "teacher":
            self.teacher = Pair(copy.deepcopy(self.student.base), copy.deepcopy(self.student.auxiliary))
        self.complete()

    def forward(self, global_pixels: Tensor, masks: Tensor, masked_indices: Tensor | None = None) -> MAEOutput:
        """
        Args:
            global_pixels: (1, B, 3, H, W) normalised images.
            masks: (1, B, h, w) bool over the patches, True = hidden, in every image equally many.
            masked_indices: (M,) positions of the hidden patches in the flattened masks; saves waiting for the device.
        Raises:
            ValueError: if images hide different numbers of patches.
        """
        self.check_views(len(global_pixels), 0)
        student, pixels = self.student, global_pixels[0]
        hidden, kept = split(masks[0], masked_indices)
        tokens, features = student.base.visible(pixels, kept)
        sequence = torch.cat([tokens.cls[:, None], tokens.patches], dim=1)
        if student.auxiliary is not None:
            said = student.auxiliary(fill(features, kept, student.base.grid, self._filler(features)))
            seen = torch.cat([said.cls[:, None], take(said.patches.flatten(1, 2), kept)], dim=1)
        last = student.pixels.hidden(sequence if student.auxiliary is None else seen, kept, hidden)
        size = student.base.model.patch_embed.patch_size
        wanted = take(pixel_targets(pixels, size, self.config.normalize_pixels), hidden)
        loss = reconstruction(student.pixels.decoder.prediction(last), wanted).loss
        parts, watched = {"pixels": loss}, None
        if student.auxiliary is not None:
            target, watched = self._target(pixels, hidden, last)
            answer = student.representations.decoder.prediction(student.representations.hidden(sequence, kept, hidden))
            parts["representations"] = F.mse_loss(answer.float(), target)
            loss = loss + self.config.representation_weight * parts["representations"]
        return MAEOutput(loss=loss, parts=parts, features=watched)

    def _filler(self, features: Tensor) -> Tensor:
        return features.new_zeros(1, features.shape[-1]) if self.student.filler is None else self.student.filler

    @torch.no_grad()
    def _target(self, pixels: Tensor, hidden: Tensor, last: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, Q, D) of mean 0 and variance 1, what the base should say of the hidden patches; the teacher's class tokens."""
        if self.config.representation_target == "decoder":
            return F.layer_norm(last.float(), last.shape[-1:]), None
        network = self.student if self.teacher is None else self.teacher
        tokens, said = network(pixels)
        target = take(said, hidden).float()
        return F.layer_norm(target, target.shape[-1:]), None if self.teacher is None else tokens.cls


def _build_student(config: MAEConfig) -> Student:
    """Every part from a seed of its own, so that none changes another's values."""
    seeds = torch.randint(2**62, (4,), device="cpu").tolist()
    with torch.random.fork_rng():
        torch.manual_seed(seeds[0])
        base = build_base(config, mask_token=False)
        require_transformer(base, config.backbone)
        prepare_base(base)
        auxiliary = build_auxiliary(config, base, seeds[1])
        torch.manual_seed(seeds[2])
        height, width = base.model.patch_embed.patch_size
        speaker = base.width if auxiliary is None else auxiliary.width
        pixels = Branch(speaker, base, config, config.decoder_depth, 3 * height * width)
        if auxiliary is None:
            return Student(base, None, pixels, None)
        torch.manual_seed(seeds[3])
        output = config.decoder_width if config.representation_target == "decoder" else auxiliary.width
        student = Student(
            base, auxiliary, pixels, Branch(base.width, base, config, config.representation_decoder_depth, output)
        )
        if config.auxiliary_fill == "token":
            student.filler = nn.Parameter(torch.zeros(1, base.width))
        return student
