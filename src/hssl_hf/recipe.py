"""Recipes: one YAML file per experiment, holding only what differs from the defaults, plus `a.b=c` from the command line.

Sections that change the result: seed, model, views, masks, data, optim. Sections that do not: probe, run. A recipe is strict:
an unknown key or a value of the wrong type is refused, with the nearest name.
"""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from hssl_hf.configuration_hssl import HSSLConfig
from hssl_hf.stream import Source
from hssl_hf.views import MaskConfig, ViewConfig

WITHOUT_EFFECT = ("probe", "run", "resume")  # sections that may change when a run is resumed


class RecipeError(ValueError):
    """A recipe that cannot be used; the message says what was expected, what came and what to do."""


@dataclass(frozen=True)
class DataConfig(Source):
    """The images to train on: a `Source`, and how to read it.

    Args:
        images_per_epoch: length of an epoch in images; None asks the dataset.
        workers: reader processes per training process.
        window: images that a reader shuffles together.
        corrupt_share: share of undecodable images at which to give up.
    """

    images_per_epoch: int | None = None
    workers: int = 4
    window: int = 2048
    corrupt_share: float = 0.01


@dataclass(frozen=True)
class OptimConfig:
    """Optimisation. Pairs are values at the start and at the end of a cosine.

    Args:
        epochs: length of the training.
        batch_size: images per optimizer step, over all processes and accumulated parts.
        accumulate: parts in which a process takes its share of the batch, one after the other.
        learning_rate_per_256: peak learning rate at batch size 256; scales linearly with the batch size.
        min_learning_rate: at the end.
        warmup_epochs: linear warm-up of the learning rate.
        weight_decay: on all matrices, position tables and tokens; not on biases and norms.
        betas: of AdamW.
        clip: largest norm of the gradient of each parameter tensor by itself; None for no clipping.
        freeze_prototypes_epochs: epochs in which the prototypes stand still.
        teacher_momentum: of the moving average, from start to end.
        teacher_temperature: tau_t at the start and at the end of its warm-up.
        teacher_temperature_epochs: length of that warm-up.
        mixed_precision: bf16 autocasts; weights, teacher, softmax and centres stay in fp32.
    Source: DINO and iBOT code for the defaults.
    """

    epochs: float = 100
    batch_size: int = 256
    accumulate: int = 1
    learning_rate_per_256: float = 5e-4
    min_learning_rate: float = 1e-6
    warmup_epochs: float = 10
    weight_decay: tuple[float, float] = (0.04, 0.4)
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 3.0
    freeze_prototypes_epochs: float = 1
    teacher_momentum: tuple[float, float] = (0.996, 1.0)
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    teacher_temperature_epochs: int = 30
    mixed_precision: Literal["no", "bf16"] = "bf16"


@dataclass(frozen=True)
class ProbeConfig:
    """The labelled images on which a k-NN classifier is tried from time to time. It never influences the training.

    Args:
        path, name, revision, image_column: as in data; path None for no probe.
        label_column: integer labels.
        bank_split, query_split: neighbours come from the first, questions from the second.
        bank_images, query_images: read at most so many of each; None for all.
        every_epochs: how often.
        neighbours, temperature: of the weighted k-NN.
        crop_share: side of the centre crop as a share of the resized image's short side.
    """

    path: str | None = None
    name: str | None = None
    revision: str | None = None
    image_column: str | None = None
    label_column: str = "label"
    bank_split: str = "train"
    query_split: str = "test"
    bank_images: int | None = None
    query_images: int | None = None
    every_epochs: float = 10
    neighbours: int = 20
    temperature: float = 0.07
    crop_share: float = 0.875


@dataclass(frozen=True)
class RunConfig:
    """Where results go and how often something is written.

    Args:
        output_dir: folder of the run; None for runs/<name of the recipe>.
        log_every_steps: steps averaged into one line of the log.
        save_every_steps: steps between checkpoints; one more is written at the end and on an interrupt.
        keep_checkpoints: newest checkpoints to keep.
        trackers: any of tensorboard, trackio (wandb and others that accelerate knows pass too).
        activation_checkpointing: less memory for more time.
        export_network: which network the export takes its base from.
    """

    output_dir: str | None = None
    log_every_steps: int = 10
    save_every_steps: int = 1000
    keep_checkpoints: int = 2
    trackers: tuple[str, ...] = ()
    activation_checkpointing: bool = False
    export_network: Literal["teacher", "student"] = "teacher"


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Args:
        seed: of weights, order and augmentation.
        resume: "auto" continues from the newest checkpoint of the output folder; "never" refuses a folder that has one.
        model: arguments of `HSSLConfig` that differ from its defaults.
    """

    seed: int = 0
    resume: Literal["auto", "never"] = "never"
    model: dict = field(default_factory=dict)
    views: ViewConfig = field(default_factory=ViewConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(path="ILSVRC/imagenet-1k"))
    optim: OptimConfig = field(default_factory=OptimConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def model_config(self) -> HSSLConfig:
        """The model's configuration, at the image size of the global views."""
        return HSSLConfig(**{**self.model, "image_size": self.views.global_size})

    def to_dict(self) -> dict:
        return _plain(dataclasses.asdict(self))

    def save(self, path: Path) -> None:
        path.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False))


def load_recipe(path: Path | None, overrides: list[str] = ()) -> Recipe:
    """Read a recipe and apply `a.b=c` overrides. Paths that start with a dot are relative to the recipe's folder.

    Raises:
        RecipeError: for a missing file, an unknown key, a value of the wrong type or a malformed override.
    """
    tree: dict = {}
    if path is not None:
        if not path.is_file():
            near = difflib.get_close_matches(path.stem, [p.stem for p in path.parent.glob("*.yaml")], n=1)
            hint = f" Did you mean {path.parent / near[0]}.yaml?" if near else ""
            raise RecipeError(f"there is no recipe {path}.{hint}")
        tree = yaml.safe_load(path.read_text()) or {}
        for section in ("data", "probe"):
            where = (tree.get(section) or {}).get("path")
            if isinstance(where, str) and where.startswith("."):
                tree[section]["path"] = str((path.parent / where).resolve())
    for override in overrides:
        _override(tree, override)
    recipe = _build(Recipe, tree, "")
    _check_model_keys(recipe.model)
    return recipe


def differences(before: dict, after: dict) -> list[str]:
    """Keys in which two recipes differ, except where a difference has no effect on the result."""
    flat_before, flat_after, unset = _flatten(before), _flatten(after), "(default)"
    return [
        f"{key}: {flat_before.get(key, unset)} -> {flat_after.get(key, unset)}"
        for key in sorted({*flat_before, *flat_after})
        if key.split(".")[0] not in WITHOUT_EFFECT and flat_before.get(key, unset) != flat_after.get(key, unset)
    ]


def _override(tree: dict, override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"expected an override of the form a.b=c, got {override!r}")
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"{key!r} cannot be set: {parent!r} is a value, not a section")
    tree[last] = yaml.safe_load(value)


def _check_model_keys(model: dict) -> None:
    known = [name for name in HSSLConfig.__annotations__ if name not in ("model_type", "image_size")]
    for key in model:
        if key == "image_size":
            raise RecipeError("model.image_size follows from views.global_size; set that instead")
        if key not in known:
            raise _unknown(f"model.{key}", key, known)


def _unknown(where: str, key: str, known) -> RecipeError:
    near = difflib.get_close_matches(str(key), known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Expected one of {sorted(known)}."
    return RecipeError(f"unknown key {where!r} in the recipe. {hint}")


def _build(kind, value, where: str):
    """Turn plain YAML into the declared type, strictly."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise RecipeError(f"{where.rstrip('.') or 'the recipe'}: expected a section with keys, got {value!r}")
        declared = typing.get_type_hints(kind)
        for key in value:
            if key not in declared:
                raise _unknown(f"{where}{key}", key, declared)
        arguments = {key: _build(declared[key], item, f"{where}{key}.") for key, item in value.items()}
        try:
            return kind(**arguments)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{where.rstrip('.') or 'recipe'}: {error}") from error
    return _build_value(kind, value, where.rstrip("."))


def _build_value(kind, value, where: str):
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in options:
            return None
        return _build_value(next(o for o in options if o is not type(None)), value, where)
    if origin is Literal:
        value = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
        if value not in options:
            raise RecipeError(f"{where}: expected one of {list(options)}, got {value!r}")
        return value
    if origin is tuple:
        kinds = options[:1] * len(value) if isinstance(value, list) and options[1:] == (Ellipsis,) else options
        if not isinstance(value, list | tuple) or len(value) != len(kinds):
            raise RecipeError(f"{where}: expected a list of {len(kinds)} values, got {value!r}")
        return tuple(_build_value(k, item, where) for k, item in zip(kinds, value, strict=True))
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
        try:
            value = float(value)
        except ValueError:
            raise RecipeError(f"{where}: expected a number, got {value!r}") from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise RecipeError(f"{where}: expected {kind.__name__}, got {value!r}")
    return value


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _flatten(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
