"""The manifest of a run: what went into it, so that others can repeat it.

Every field is chosen here; nothing of the environment gets in by itself, and paths of this machine are cut to their last name.
"""

import json
import logging
import platform
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator

from hssl_hf.config.recipe import Recipe
from hssl_hf.data.files import read_object, write_below
from hssl_hf.data.source import StreamError, dataset_fingerprint
from hssl_hf.engine.launch import available_cores
from hssl_hf.engine.memory import GIB, total
from hssl_hf.evaluation.records import current_commit
from hssl_hf.fields import FieldError, check, make
from hssl_hf.publish.origin import Origin, as_plain, timm_origin
from hssl_hf.publish.redaction import public_path

MANIFEST, ESTIMATE = "manifest.json", "estimate.json"
OF_ESTIMATE = {"engine": str, "processes": int, "needed_gib": float, "images_per_second": float, "hours": float}
KINDS = {
    "data": dict, "origin": dict | None, "seed": int, "commit": str, "versions": dict, "hardware": dict, "engine": str,
    "processes": int, "estimate": dict | None, "steps": int, "images_seen": int, "undecodable": int, "first_of_several": int,
    "seconds": float, "peak_memory_gib": float, "images_per_second": float,
}  # fmt: skip
logger = logging.getLogger(__name__)
PACKAGES = ("accelerate", "datasets", "hssl-hf", "huggingface-hub", "timm", "torch", "torchvision", "transformers")


def begin(recipe: Recipe, folder: Path, accelerator: Accelerator, images_per_epoch: int, origin: Origin | None = None) -> dict:
    """What is known before the first step: data, initial weights, code, versions, machine."""
    try:
        identity = dataset_fingerprint(recipe.data)
    except StreamError:
        identity = {}
    data = recipe.data
    return {
        "data": {
            "path": public_path(data.path), "name": data.name, "split": data.split or "train",
            "revision": identity.get("revision") or data.revision, "fingerprint": identity.get("fingerprint"),
            "images_per_epoch": images_per_epoch,
        },
        "origin": as_plain(origin),
        "seed": recipe.seed,
        "commit": current_commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "hardware": hardware(accelerator),
        "engine": accelerator.distributed_type.value.lower().replace("no", "single"),
        "processes": accelerator.num_processes,
        "estimate": read_estimate(folder),
    }  # fmt: skip


def read_estimate(folder: Path) -> dict | None:
    """The part of the estimate before the run that can be compared with what was measured."""
    estimate = _sound(read_object(folder / ESTIMATE), OF_ESTIMATE, folder / ESTIMATE)
    return {name: estimate[name] for name in OF_ESTIMATE} if estimate.keys() >= OF_ESTIMATE.keys() else None


def hardware(accelerator: Accelerator) -> dict:
    """The kind of machine, without its name."""
    cuda = accelerator.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(accelerator.device) if cuda else _processor(),
        "device_memory_gib": round(total(accelerator.device) / GIB, 1),
        "cores": available_cores(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def write(folder: Path, manifest: dict) -> None:
    write_below(folder, MANIFEST, json.dumps(manifest, indent=1) + "\n")


def read(folder: Path) -> dict:
    """The manifest of a run; empty if there is none, as in old runs. Damaged entries are skipped, with a warning."""
    return _sound(read_object(folder / MANIFEST), KINDS, folder / MANIFEST)


def _sound(values: dict, kinds: dict, path: Path) -> dict:
    """The entries that are of the kind that was written, or of no known kind."""
    sound = {}
    for name, value in values.items():
        try:
            sound[name] = check(kinds.get(name, object), value, name) if value != "" else value
        except FieldError as error:
            logger.warning("%s: a damaged entry is skipped: %s", path, error)
    return sound


def origin_of(folder: Path, recipe: Recipe) -> Origin | None:
    """The weights from which a run started; of unknown license where its manifest has lost them; None if they were random."""
    if recipe.init_from is None:
        config = recipe.model_config()
        return timm_origin(config.backbone, config.backbone_kwargs)
    try:
        return make(Origin, read(folder).get("origin"), "origin")
    except FieldError as error:
        logger.warning("%s lacks the origin of init_from, whose license counts as unknown: %s", folder / MANIFEST, error)
        return Origin(public_path(recipe.init_from))


def public_recipe(recipe: Recipe, origin: Origin | None = None) -> dict:
    """A recipe without what concerns this machine only: folders are cut to their last name, URLs to what is not secret.

    Args:
        origin: of the initial weights, recorded when they were there: their folder may be gone.
    """
    tree = recipe.to_dict()
    for section in ("data", "probe"):
        for name in ("path", "classes"):
            tree[section][name] = public_path(tree[section][name])
    tree["init_from"] = public_path(recipe.init_from)
    if recipe.init_from is not None and origin is not None:
        tree["init_from"] = f"{origin.name}@{origin.revision}" if origin.revision else origin.name
    tree["run"].pop("output_dir")
    return tree
