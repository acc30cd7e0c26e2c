"""The folder of a run, read after the training: its model, recipe, records and figures; and how they are exported."""

import logging
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path

from safetensors.torch import load_file
from transformers import AutoModelForPreTraining, BitImageProcessor, PreTrainedModel

from hssl_hf.config.recipe import Recipe, load_recipe
from hssl_hf.data.files import LinkError, read_below, require_writable
from hssl_hf.engine.checkpoint import STATE, WEIGHTS, CheckpointError, CheckpointManager
from hssl_hf.errors import reading
from hssl_hf.evaluation.records import read_records
from hssl_hf.publish.card_text import FIGURES
from hssl_hf.publish.export import CardContext, export_backbone, export_model, require_replaceable
from hssl_hf.publish.file_formats import FormatError, require_format
from hssl_hf.publish.hub import stage
from hssl_hf.publish.image_processor import image_processor
from hssl_hf.publish.origin import as_plain, settle
from hssl_hf.publish.secret_scan import refuse_secrets
from hssl_hf.runs import manifest

logger = logging.getLogger(__name__)
RECIPE, RESULTS, ALARMS = "recipe.yaml", "results.jsonl", "alarms.jsonl"


@dataclass(frozen=True)
class RunDirectory:
    """A run at one of its checkpoints.

    Args:
        folder: of the run.
        checkpoint: the newest, or a chosen one.
    """

    folder: Path
    checkpoint: Path

    @classmethod
    def open(cls, path: Path | str) -> "RunDirectory":
        """
        Args:
            path: folder of a run (its newest checkpoint is taken) or of one checkpoint.
        Raises:
            CheckpointError: if the folder holds no checkpoint that is complete and undamaged.
        """
        path = Path(path).resolve()
        checkpoints, checkpoint = CheckpointManager(path / "checkpoints"), path
        if (path / STATE).is_file():
            checkpoints.require_valid(path)
        else:
            checkpoint = checkpoints.latest_valid()
        if checkpoint is None:
            raise CheckpointError(f"{path} holds no complete checkpoint; expected a folder of a run, or one of its checkpoints")
        return cls(checkpoint.parents[1], checkpoint)

    @cached_property
    def recipe(self) -> Recipe:
        return load_recipe(self.folder / RECIPE)

    @cached_property
    def model(self) -> PreTrainedModel:
        config, origin = self.recipe.model_config(), manifest.origin_of(self.folder, self.recipe)
        config.license = settle(config.license, None, origin)
        model = AutoModelForPreTraining.from_config(config)
        with reading(self.checkpoint / WEIGHTS, f"expected weights of the model in {self.folder / RECIPE}"):
            model.load_state_dict(load_file(self.checkpoint / WEIGHTS))
        return model

    def export(self, folder: Path, kind: str, network: str | None, license: str | None, onnx: bool) -> Path:
        """Write one of the kinds of `hssl_hf.publish.export`; returns the folder."""
        require_replaceable(folder)
        kwargs = self._export_kwargs(license=license)
        if kind == "training":
            return export_model(self.model, folder, **kwargs)
        return export_backbone(self.model, folder, kind=kind, network=network, onnx=onnx, **kwargs)

    def stage(
        self, repository: str, revision: str, network: str | None, license: str | None, onnx: bool, token: str | None = None
    ) -> Path:
        """Write what is to be pushed to a repository into `push/`; returns that folder.

        Raises:
            UserError: before any work, if the run cannot be written, or holds what looks like a secret (or the token).
        """
        require_writable(self.folder / "push")
        kwargs = self._export_kwargs(license=license, repository=repository, revision=revision)
        context = kwargs["context"]
        texts = {RECIPE: context.about["recipe"], manifest.MANIFEST: context.about["manifest"], RESULTS: context.records}
        refuse_secrets({name: str(text).encode(errors="replace") for name, text in texts.items()} | context.figures, token)
        return stage(self.model, self.folder / "push", network=network, onnx=onnx, **kwargs)

    def _export_kwargs(self, **kwargs) -> dict:
        """Image processor and context of the model card; `kwargs` are those of `card_context`."""
        return {"processor": image_processor_for(self.recipe), "context": card_context(self.folder, self.recipe, **kwargs)}


def image_processor_for(recipe: Recipe) -> BitImageProcessor:
    """The image processor that goes with a recipe's views."""
    return image_processor(recipe.views.global_crop_size, recipe.probe.crop_pct, recipe.views.mean, recipe.views.std)


def card_context(folder: Path, recipe: Recipe, license: str | None = None, **location: str) -> CardContext:
    """Recipe, manifest, origin, records and figures of a run; `location` has `repository` and `revision`.

    Raises:
        LicenseError: if the origin of the weights does not allow the license.
    """
    origin = manifest.origin_of(folder, recipe)
    settle(recipe.model_config().license, license, origin)
    about = {"recipe": manifest.public_recipe(recipe, origin), "manifest": manifest.read(folder), "license": license}
    about["origin"] = as_plain(origin)
    return CardContext(about, read_records(folder / RESULTS), read_figures(folder), **location)


def read_figures(folder: Path) -> dict[str, bytes]:
    """The figures of a run as PNG, by path; with a warning, links and files of other kinds are left out."""
    figures = {}
    for name in FIGURES:
        if not (folder / name).exists():
            continue
        try:
            content = read_below(folder, name)
            require_format(name, BytesIO(content))
        except (LinkError, FormatError) as error:
            logger.warning("a figure is left out: %s", error)
        else:
            figures[name] = content
    return figures
