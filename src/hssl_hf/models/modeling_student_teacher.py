"""What all methods share: a student that is trained, and a teacher that is its moving average."""

from typing import TYPE_CHECKING

from timm.layers import DropPath
from torch import Tensor, nn

from hssl_hf.models.modeling_base import BackbonePreTrainedModel
from hssl_hf.modules.ema import update_teacher
from hssl_hf.modules.tokens import Tokens

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo
    from transformers import BitImageProcessor


class StudentTeacherPreTrainedModel(BackbonePreTrainedModel):
    """Base class of the methods, with what the training loop needs to know of them.

    A subclass builds `student` (a module whose `base` is the `Backbone` to be kept) and `teacher` (a copy of it, or None), and
    calls `_finish_init` at the end of its constructor. Its `forward` returns a `ModelOutput` with `loss`, its terms `losses`
    and the monitored `metrics`; it is given those fields of `Views` and `teacher_temperature` that its signature names. With
    `return_loss=True` in its signature transformers' `Trainer` evaluates it too.

    num_views: global views it expects; None for any number.
    masked_views: how many of them are masked, from the first on; None for all, 0 for none.
    equal_mask_counts: every image must have as many masked patches.
    supports_local_views: whether it takes local views.
    in_batch_negatives: the images of a batch are each other's negatives, so that gradients cannot accumulate.
    teacher_updates_first: the teacher of step t has already been updated with the momentum of step t.
    default_network: the network whose base is exported by default, "teacher" or "student".
    has_unused_parameters: some of the student's parameters get no gradient.
    """

    base_model_prefix = "student"

    num_views: int | None = 2
    masked_views: int | None = None
    equal_mask_counts = False
    supports_local_views = False
    in_batch_negatives = False
    teacher_updates_first = False
    default_network = "teacher"
    has_unused_parameters = False

    def _finish_init(self) -> None:
        """Freeze what is not trained; to be called at the end of a subclass's constructor."""
        if self.teacher is not None:
            for module in self.teacher.modules():
                if isinstance(module, DropPath):
                    module.drop_prob = 0.0
        self.freeze()
        self.post_init()

    def check_views(self, num_globals: int, num_locals: int) -> None:
        """Raise a ValueError if the method does not take these numbers of global and local views."""
        if self.num_views not in (None, num_globals):
            raise ValueError(
                f"this method takes {self.num_views} global views, got {num_globals}; views.global_crop_blur and "
                "views.global_crop_solarize have one value for each"
            )
        if num_locals and not self.supports_local_views:
            raise ValueError(f"this method takes no local views, got {num_locals}; set views.num_local_crops=0")

    def update_teacher(self, momentum: float) -> None:
        """Move the teacher towards the student: teacher = momentum * teacher + (1 - momentum) * student."""
        if self.teacher is not None:
            update_teacher(self.student, self.teacher, momentum)

    def get_network(self, name: str | None = None) -> nn.Module:
        """The "teacher" or the "student"; None for `default_network`.

        Raises:
            ValueError: for another name, or if this method has no teacher.
        """
        if name not in ("teacher", "student", None):
            raise ValueError(f"network: expected 'teacher', 'student' or None, got {name!r}")
        if name == "teacher" and self.teacher is None:
            raise ValueError("this method has no teacher; use the student (run.export_network=student)")
        return getattr(self, name or self.default_network)

    def encode(self, pixels: Tensor, network: str | None = None) -> Tokens:
        """Tokens of the base model for (B, 3, H, W) normalized images, of one `network`."""
        return self.get_network(network).base(pixels)[0]

    def freezable_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters that may be frozen for the first epochs, by name.

        `base`, while newly initialized heads warm up behind it; `prototypes`, the last layer, in DINO and iBOT.
        """
        return {"base": [p for p in self.student.base.parameters() if p.requires_grad]}

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        tags: list[str] | None = None,
        license: str | None = None,
        processor: "BitImageProcessor | None" = None,
    ) -> "CommitInfo":
        """Push to the Hub: the base as a stock transformers model, for timm and for feature maps, and the full model.

        Args:
            repo_id: user/name.
            commit_message, commit_description: of the commits or pull requests, one for each branch.
            private, token, create_pr, max_shard_size, tags: as in transformers; the tags are added to those of the card.
            revision: branch of the stock model, after which the others are named; by default main.
            license: of the weights, for the card.
            processor: saved with the weights; by default one for the model's image size.
        Returns:
            the commit of the stock model.
        Raises:
            PushError, UserError: as `hssl_hf.publish.hub.push`.
        """
        from hssl_hf.publish.hub import push_model

        about = {"license": license, "tags": [tags] if isinstance(tags, str) else tags, "processor": processor}
        where = {"private": private, "token": token, "create_pr": create_pr, "revision": revision or "main"}
        texts = {"commit_message": commit_message or "Upload a pre-trained backbone", "commit_description": commit_description}
        return push_model(self, repo_id, max_shard_size=max_shard_size, **about, **where, **texts)["main"]

    def freeze(self) -> None:
        """Freeze the teacher and fixed parameters; transformers does not restore that when it loads a model."""
        if self.teacher is not None:
            self.teacher.requires_grad_(False)
        base = self.student.base
        if base.is_transformer:
            base.model.pos_embed.requires_grad_(not self.config.sincos_position_embeddings)
            base.model.patch_embed.requires_grad_(not self.config.freeze_patch_embed)

    def _trained(self) -> nn.Module:
        return self.student

    def _restore(self, lost: set[str]) -> None:
        """What the teacher lacks is copied from the student; the teacher is frozen."""
        of_teacher = {key for key in lost if key.startswith("teacher.")}
        super()._restore(lost - of_teacher)
        student = self.student.state_dict()
        self.load_state_dict({key: student[key.removeprefix("teacher.")] for key in of_teacher}, strict=False)
        self.freeze()
