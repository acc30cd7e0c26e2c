"""Recipes: one YAML file per experiment, holding only what differs from the defaults, plus `a.b=c` from the command line.

Sections that change the result: seed, model, views, masks, data, optim. Sections that do not: probe, run. A recipe is strict:
every key declares its type and range (`hssl_hf.fields`), and anything else is refused, with the nearest name.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from hssl_hf.config.strict_yaml import RecipeError, build, dump, flatten, override, parse, read
from hssl_hf.data.augmentation import MaskConfig, ViewConfig
from hssl_hf.data.channels import views_for_channels
from hssl_hf.data.files import write_below
from hssl_hf.data.loader import DataConfig
from hssl_hf.evaluation.probe import ProbeConfig
from hssl_hf.fields import (
    BatchSize,
    Distinct,
    Epochs,
    FieldError,
    Fraction,
    Length,
    Range,
    Section,
    Seed,
    Steps,
    Temperature,
    check,
)
from hssl_hf.models.auto import configuration_classes
from hssl_hf.models.configuration_base import PreTrainingConfig
from hssl_hf.models.configuration_hssl import HSSLConfig

WeightDecay = Annotated[float, Range(0, 10)]
Beta = Annotated[float, Range(0, below=1)]
WITHOUT_EFFECT = ("probe", "run", "resume_from_checkpoint")  # sections that may change when a run is resumed
WITHOUT_EFFECT += ("data.num_workers", "data.max_corrupt_fraction")


@dataclass(frozen=True)
class OptimConfig(Section):
    """Optimization. Pairs are values at the start and at the end of a cosine.

    Args:
        epochs: length of the training.
        batch_size: images per optimizer step, over all processes and micro-batches.
        gradient_accumulation_steps: micro-batches into which a process divides its images of a batch; batch statistics (batch
            norm, the covariance of SiameseIM) are those of a micro-batch.
        base_learning_rate: peak learning rate at `base_batch_size`; scales linearly with the batch size.
        base_batch_size: batch size that the base learning rate refers to.
        min_learning_rate: at the end.
        warmup_epochs: linear warm-up of the learning rate.
        warmup_rule: dino reaches the peak on the last step of the warm-up, mae on the one after it.
        weight_decay: on all matrices, position tables and tokens; not on biases and norms.
        betas: of AdamW.
        max_grad_norm: largest norm of a gradient; None for no clipping.
        grad_clip: of each parameter tensor by itself, or of all together.
        freeze_last_layer_epochs: epochs in which the prototypes are frozen.
        freeze_backbone_epochs: epochs in which the base is frozen, so that heads can warm up; None for one epoch where
            `init_from` is a backbone without heads, and none otherwise.
        teacher_momentum: of the moving average, from start to end.
        teacher_temperature: tau_t at the start and at the end of its warm-up.
        warmup_teacher_temperature_epochs: length of that warm-up.
        mixed_precision: bf16 autocasts; weights, teacher, softmax and centers stay in fp32.
    Source: DINO and iBOT code for the defaults.
    """

    epochs: Annotated[float, Range(above=0, most=1_000_000)] = 100.0
    batch_size: BatchSize = 256
    gradient_accumulation_steps: BatchSize = 1
    base_learning_rate: Annotated[float, Range(above=0)] = 5e-4
    base_batch_size: BatchSize = 256
    min_learning_rate: Annotated[float, Range(0)] = 1e-6
    warmup_epochs: Epochs = 10.0
    warmup_rule: Literal["dino", "mae"] = "dino"
    weight_decay: tuple[WeightDecay, WeightDecay] = (0.04, 0.4)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    max_grad_norm: Annotated[float, Range(above=0)] | None = 3.0
    grad_clip: Literal["per_parameter", "global"] = "per_parameter"
    freeze_last_layer_epochs: Epochs = 1.0
    freeze_backbone_epochs: Epochs | None = None
    teacher_momentum: tuple[Fraction, Fraction] = (0.996, 1.0)
    teacher_temperature: tuple[Temperature, Temperature] = (0.04, 0.07)
    warmup_teacher_temperature_epochs: Annotated[int, Range(0, 1_000_000)] = 30
    mixed_precision: Literal["no", "bf16"] = "bf16"

    def __post_init__(self):
        super().__post_init__()
        if self.warmup_epochs > self.epochs:
            raise FieldError(
                f"warmup_epochs: expected at most {self.epochs}, the epochs of the training, got {self.warmup_epochs}"
            )

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate at the end of the warm-up."""
        return self.base_learning_rate * self.batch_size / self.base_batch_size


@dataclass(frozen=True)
class RunConfig(Section):
    """Where results go and how often something is written.

    Args:
        output_dir: folder of the run; None for runs/<name of the recipe>.
        logging_steps: steps averaged into one line of the log.
        save_steps: steps between checkpoints; one more is written at the end and on an interrupt.
        save_total_limit: newest checkpoints to keep.
        report_to: any of tensorboard, trackio (wandb and others that accelerate knows pass too).
        activation_checkpointing: less memory for more time.
        export: write and check the stock model at the end; `hssl-hf export` does it later.
        export_network: which network the export takes its base from; None for the one that the method keeps.
    """

    output_dir: str | None = None
    logging_steps: Steps = 10
    save_steps: Steps = 1000
    save_total_limit: Steps = 2
    report_to: Annotated[tuple[str, ...], Length(0, 16), Distinct()] = ()
    activation_checkpointing: bool = False
    export: bool = True
    export_network: Literal["teacher", "student"] | None = None


@dataclass(frozen=True)
class Recipe(Section):
    """One experiment.

    Args:
        seed: of weights, order and augmentation.
        init_from: weights to start from: folder or Hub repository, with @revision where it is not main. A full model (the
            branch `training`) gives student, teacher and heads; a backbone alone the base, behind which fresh heads warm up.
            The model inherits their license.
        resume_from_checkpoint: "auto" continues from the newest checkpoint of the output folder; "never" refuses a
            folder that has one.
        model: arguments of the model's configuration that differ from its defaults; model_type names the method, one of
            those in `hssl_hf.models` (hssl, hssl_mae, siamese_im, hssl_search). `backbone_kwargs: {in_chans: 1}` sets the
            number of channels, which views, decoding, targets and export follow (`hssl_hf.data.channels`).
    """

    seed: Seed = 0
    init_from: str | None = None
    resume_from_checkpoint: Literal["auto", "never"] = "never"
    model: dict[str, object] = field(default_factory=dict)
    views: ViewConfig = field(default_factory=ViewConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self):
        super().__post_init__()
        config = self.model_config()
        object.__setattr__(self, "views", views_for_channels(self.views, config.num_channels))

    def model_config(self) -> PreTrainingConfig:
        """The model's configuration, at the image size of the global views.

        Raises:
            FieldError: for an unknown method, unknown keys, and values that the method's configuration does not allow.
        """
        methods = configuration_classes()
        check(Literal[tuple(sorted(methods))], self.model_type(), "model.model_type")
        method = methods[self.model_type()]
        for key in self.model.keys() - {"model_type"}:
            if key == "image_size":
                raise FieldError("model.image_size: follows from views.global_crop_size; set that instead")
            if key not in method.declarations():
                raise FieldError(f"model.{key[:100]}: unknown key. {method.nearest(key)}")
        arguments = {key: value for key, value in self.model.items() if key != "model_type"}
        try:
            return method(**arguments, image_size=self.views.global_crop_size)
        except FieldError as error:
            raise error.below("model") from None

    def model_type(self) -> str:
        """The method, by the `model_type` of its configuration class."""
        return self.model.get("model_type", HSSLConfig.model_type)

    def images_per_process(self, processes: int) -> int:
        """Images of one micro-batch of one process.

        Raises:
            RecipeError: if the batch does not divide.
        """
        images, rest = divmod(self.optim.batch_size, processes * self.optim.gradient_accumulation_steps)
        if rest or not images:
            raise RecipeError(
                f"optim.batch_size={self.optim.batch_size} is not divisible by {processes} processes × "
                f"{self.optim.gradient_accumulation_steps} micro-batches (optim.gradient_accumulation_steps)"
            )
        return images

    def to_dict(self) -> dict:
        """The tree of the recipe's file, with lists for tuples."""
        return parse(dump(dataclasses.asdict(self)), "recipe")

    def save(self, path: Path) -> None:
        """Write the file of the recipe, in place of a link of its name; raises a UserError if it cannot be written."""
        write_below(path.parent, path.name, dump(self.to_dict()))


def load_recipe(path: Path | None, overrides: list[str] = ()) -> Recipe:
    """Read a recipe and apply `a.b=c` overrides.

    Paths that start with a dot are relative to the recipe's folder. `extends: other.yaml` takes over another recipe, from which
    its own values override those.

    Raises:
        RecipeError: for a missing file, an unknown key, a value of the wrong type or a malformed override.
    """
    tree = {} if path is None else read(path)
    for text in overrides:
        override(tree, text)
    return build(Recipe, tree)


def recipe_diff(before: dict, after: dict) -> list[str]:
    """Keys in which two recipes differ, except where a difference has no effect on the result."""
    flat_before, flat_after, unset = flatten(before), flatten(after), "(default)"
    return [
        f"{key}: {flat_before.get(key, unset)} -> {flat_after.get(key, unset)}"
        for key in sorted({*flat_before, *flat_after})
        if not {key, key.split(".")[0]} & set(WITHOUT_EFFECT) and flat_before.get(key, unset) != flat_after.get(key, unset)
    ]
