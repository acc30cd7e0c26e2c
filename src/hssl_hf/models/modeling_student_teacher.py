"""What every method has: a student that learns, and a teacher that follows it and is never trained."""

from timm.layers import DropPath
from torch import Tensor, nn
from transformers import PreTrainedModel

from hssl_hf.modules.ema import copy_to_teacher, update_teacher
from hssl_hf.modules.tokens import Tokens


class StudentTeacherModel(PreTrainedModel):
    """A method of self-supervised learning as the training loop knows it.

    A subclass builds `student` (a module whose `base` is the `Backbone` worth keeping) and `teacher` (its frozen twin, or None)
    and calls `complete`. Its `forward` returns a `ModelOutput` with `loss` and `parts`, and takes what its signature names of
    `Views` and of the schedules. The rest is said by:

    num_views: global views it expects; None for any number.
    masked_views: how many of them are masked, from the first on; None for all, 0 for none.
    counted_masks: every image has to hide equally many patches.
    takes_locals: whether local views may come.
    in_batch: the images of a batch are each other's negatives, so that a batch cannot be taken in parts.
    moves_before_forward: the teacher of step t has already followed the student with the momentum of step t.
    kept_network: the network whose base is kept, unless somebody asks for the other.
    leaves_parameters_idle: some of the student's parameters get no gradient.
    """

    base_model_prefix = "student"
    main_input_name = "global_pixels"
    supports_gradient_checkpointing = True

    num_views: int | None = 2
    masked_views: int | None = None
    counted_masks = False
    takes_locals = False
    in_batch = False
    moves_before_forward = False
    kept_network = "teacher"
    leaves_parameters_idle = False

    def complete(self) -> None:
        """To be called at the end of a subclass's constructor."""
        if self.teacher is not None:
            for module in self.teacher.modules():
                if isinstance(module, DropPath):
                    module.drop_prob = 0.0
        self._without_storage = next(self.parameters()).is_meta  # while from_pretrained builds it
        self.freeze()
        self.post_init()

    def check_views(self, num_globals: int, num_locals: int) -> None:
        """Raise a ValueError if so many global and local views do not suit the method."""
        if self.num_views not in (None, num_globals):
            raise ValueError(f"this method takes {self.num_views} global views, got {num_globals}")
        if num_locals and not self.takes_locals:
            raise ValueError(f"this method takes no local views, got {num_locals}; set views.local_number=0")

    def update_teacher(self, momentum: float) -> None:
        """Move the teacher towards the student: teacher = momentum * teacher + (1 - momentum) * student."""
        if self.teacher is not None:
            update_teacher(self.student, self.teacher, momentum)

    def network(self, name: str | None = None) -> nn.Module:
        """The "teacher" or the "student"; None for the one that the method keeps.

        Raises:
            ValueError: if this method has no teacher.
        """
        if name == "teacher" and self.teacher is None:
            raise ValueError("this method has no teacher; take the student (run.export_network=student)")
        return getattr(self, name or self.kept_network)

    def encode(self, pixels: Tensor, network: str | None = None) -> Tokens:
        """Tokens of the base model for (B, 3, H, W) normalised images, of one `network`."""
        return self.network(network).base(pixels)[0]

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters that stand still for a while.

        `base`, while fresh heads warm up behind it; `prototypes`, the last layer, in the first epochs of DINO and iBOT.
        """
        return {"base": [p for p in self.student.base.parameters() if p.requires_grad]}

    def push_to_hub(self, repo_id: str, *, license: str | None = None, **kwargs) -> dict[str, str]:
        """Bring the model to the Hub: the base as a stock model, the same for timm, and the whole to go on with.

        Args:
            repo_id: user/name.
            license: of the weights, for the card.
            kwargs: `private`, `token`, `revision`, `create_pr` and `commit_message`, as in `hssl_hf.hub.push`.
        Returns:
            address of the commit or pull request, by kind of branch (main, timm, training).
        """
        from hssl_hf.publish.hub import push_model

        return push_model(self, repo_id, license=license, **kwargs)

    def get_input_embeddings(self) -> None:
        """There is no table of embeddings that an engine could treat apart."""

    def get_output_embeddings(self) -> None:
        """There is none either."""

    def freeze(self) -> None:
        """Mark what no optimizer moves; transformers forgets that when it loads a model."""
        if self.teacher is not None:
            self.teacher.requires_grad_(False)
        self.student.base.hold_still(positions=self.config.fixed_positions, patch_embed=not self.config.train_patch_embed)

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers; the teacher comes back frozen.

        What the checkpoint lacks is drawn as for a new model; without a teacher in it, the teacher is the student.
        """
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        missing = [key for key in info["missing_keys"] if not key.startswith("teacher.")]
        if missing:
            fresh = cls(model.config).state_dict()
            model.load_state_dict({key: fresh[key] for key in missing}, strict=False)
        if len(missing) < len(info["missing_keys"]):
            copy_to_teacher(model.student, model.teacher)
        model.freeze()
        return (model, info) if output_loading_info else model

    def _init_weights(self, module: nn.Module) -> None:
        """Every part has initialised itself when it was built; transformers' own scheme would overwrite that.

        Only buffers that no checkpoint holds are worked out again where the model was built without storage.
        """
        if self._without_storage and hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()

    def _set_gradient_checkpointing(self, enable: bool = True, *args, **kwargs) -> None:
        self.student.base.model.set_grad_checkpointing(enable)
        for module in self.student.modules():
            if hasattr(module, "grad_checkpointing"):
                module.grad_checkpointing = enable
