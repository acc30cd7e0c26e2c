"""A recipe and the size of its data -> all values that depend on the step."""

from hssl_hf.config.recipe import Recipe, RecipeError
from hssl_hf.engine.schedules import Cosine, EpochRamp


class TrainingSchedule:
    """Schedules and periods in optimizer steps.

    Args:
        recipe: durations in epochs.
        images_per_epoch: length of an epoch; a last, incomplete batch is not counted.
        fresh_heads: the heads start anew behind a trained base.
    Raises:
        RecipeError: if a batch is larger than an epoch.
    """

    def __init__(self, recipe: Recipe, images_per_epoch: int, fresh_heads: bool = False):
        optim, batch = recipe.optim, recipe.optim.batch_size
        if batch > images_per_epoch:
            raise RecipeError(f"optim.batch_size={batch} is larger than an epoch, which has {images_per_epoch} images")
        per_epoch = images_per_epoch // batch
        self.steps = max(1, round(optim.epochs * per_epoch))
        self._warmup = round(optim.warmup_epochs * per_epoch)
        self.learning_rate = Cosine(
            optim.peak_learning_rate, optim.min_learning_rate, self.steps, self._warmup, warmup_rule=optim.warmup_rule
        )
        self.weight_decay = Cosine(*optim.weight_decay, self.steps)
        self.momentum = Cosine(*optim.teacher_momentum, self.steps)
        self.temperature = EpochRamp(*optim.teacher_temperature, optim.warmup_teacher_temperature_epochs, per_epoch)
        frozen_base = float(fresh_heads) if optim.freeze_backbone_epochs is None else optim.freeze_backbone_epochs
        epochs = {"prototypes": optim.freeze_last_layer_epochs, "base": frozen_base}
        self.frozen_steps = {group: round(length * per_epoch) for group, length in epochs.items()}
        self.probe_every = max(1, round(recipe.probe.every_epochs * per_epoch))

    @property
    def warmup_end(self) -> int:
        """The step from which on the student should learn."""
        return max(self._warmup, *self.frozen_steps.values())

    def frozen_groups(self, step: int) -> set[str]:
        """Parameter groups that are frozen in a step."""
        return {group for group, steps in self.frozen_steps.items() if step < steps}
