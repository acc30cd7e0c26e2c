"""The folder of a run, read by whoever comes after the training: the model, what it was trained with, what was measured."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors.torch import load_file
from transformers import AutoModelForPreTraining, BitImageProcessor, PreTrainedModel

from hssl_hf.config.recipe import Recipe, load_recipe
from hssl_hf.engine.checkpoint import STATE, WEIGHTS, CheckpointError, Checkpoints
from hssl_hf.publish.card_text import PICTURES
from hssl_hf.publish.export import Story
from hssl_hf.publish.image_processor import image_processor
from hssl_hf.publish.redaction import is_hub_id, public_path
from hssl_hf.runs import manifest

RECIPE, RESULTS, ALARMS = "recipe.yaml", "results.jsonl", "alarms.jsonl"


@dataclass(frozen=True)
class RunFolder:
    """A run at one of its checkpoints.

    Args:
        folder: of the run.
        checkpoint: the newest, or the one that was asked for.
    """

    folder: Path
    checkpoint: Path

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """
        Args:
            path: folder of a run (its newest checkpoint is taken) or of one checkpoint.
        Raises:
            CheckpointError: if the folder holds no complete checkpoint.
        """
        path = path.resolve()
        checkpoint = path if (path / STATE).is_file() else next(reversed(Checkpoints(path / "checkpoints").all()), None)
        if checkpoint is None:
            raise CheckpointError(f"{path} holds no complete checkpoint; expected a folder of a run, or one of its checkpoints")
        return cls(checkpoint.parents[1], checkpoint)

    @cached_property
    def recipe(self) -> Recipe:
        return load_recipe(self.folder / RECIPE)

    @cached_property
    def model(self) -> PreTrainedModel:
        config = self.recipe.model_config()
        model = AutoModelForPreTraining.from_config(config)
        model.load_state_dict(load_file(self.checkpoint / WEIGHTS))
        return model

    @property
    def processor(self) -> BitImageProcessor:
        return processor_of(self.recipe)

    def story(self, **more) -> Story:
        """What the run tells of its model.

        Args:
            more: `license`; `repository`, `revision`.
        """
        return story_of(self.folder, self.recipe, **more)


def processor_of(recipe: Recipe) -> BitImageProcessor:
    """The image processor that goes with a recipe's views."""
    return image_processor(recipe.views.global_size, recipe.probe.crop_share, recipe.views.mean, recipe.views.std)


def story_of(folder: Path, recipe: Recipe, license: str | None = None, **where: str) -> Story:
    """Recipe, manifest, records and pictures of a run."""
    about = {"recipe": manifest.public_recipe(recipe), "manifest": manifest.read(folder), "license": license}
    start = public_path(recipe.init_from)
    about["base_model"] = start.partition("@")[0] if start and is_hub_id(start.partition("@")[0]) else None
    pictures = {name: folder / name for name in PICTURES if (folder / name).is_file()}
    return Story(about, read_lines(folder / RESULTS), pictures, **where)


def read_lines(path: Path) -> list[dict]:
    """Objects of a file of JSON lines; none if there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
