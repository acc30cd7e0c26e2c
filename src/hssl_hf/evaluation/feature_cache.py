"""Features on disk, kept under what they depend on: weights, preprocessing, images and representation."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import torch
from huggingface_hub import constants
from torch import Tensor, nn

from hssl_hf.data.files import write_below
from hssl_hf.data.source import dataset_fingerprint
from hssl_hf.errors import UserError, reason, writing
from hssl_hf.evaluation.features import FeatureSet, Representation
from hssl_hf.evaluation.images import LabeledImages
from hssl_hf.evaluation.labels import Label
from hssl_hf.evaluation.tensor_file import read_tensors, write_tensors
from hssl_hf.fields import Section

if TYPE_CHECKING:
    from hssl_hf.evaluation.extraction import ExtractionConfig

VERSION = 1  # of what a key depends on, and of the files
SETTINGS, FEATURES, PARTS = "settings.json", "features.safetensors", "part-*.safetensors"
GIB = 2**30
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Features of some images of a split.

    Args:
        features: (n, D) float32.
        labels: as the data has them.
        keys: (n, 3) int64: shard, row, checksum of the bytes.
    """

    features: Tensor
    labels: list[Label]
    keys: Tensor


class FeatureCache:
    """A folder of features, limited in size.

    Args:
        limit_gib: above which the features that were not used for longest are removed.
        folder: by default `assets/hssl_hf/features` in the cache of huggingface_hub (HF_HOME).
    """

    def __init__(self, limit_gib: float = 20.0, folder: Path | None = None):
        self.limit, self.folder = limit_gib * GIB, folder or Path(constants.HF_ASSETS_CACHE) / "hssl_hf" / "features"

    def entry(
        self,
        encoder: nn.Module | Callable,
        processor: Callable,
        images: LabeledImages,
        representation: Representation,
        config: "ExtractionConfig",
        protocol: Section | None = None,
    ) -> "CacheEntry":
        """The features of an encoder on the images of a split, whether they are there or not.

        Args:
            protocol: settings of what is kept instead of features.
        Raises:
            StreamError: if the images cannot be opened.
        """
        source = asdict(images.source) | dataset_fingerprint(images.source) | {"path": Path(images.source.path).name}
        if images.source.classes:
            source["classes"] = hashlib.sha256(Path(images.source.classes).read_bytes()).hexdigest()
        settings = {
            "version": VERSION,
            "encoder": getattr(encoder, "name", getattr(encoder, "__name__", "")),
            "weights": weights_fingerprint(encoder),
            "preprocessing": preprocessing(processor),
            "source": source,
            "images": [images.limit, images.limit_per_class, images.channels, images.part, images.labeled],
            "representation": asdict(representation),
            "mixed_precision": config.mixed_precision,
            "protocol": None if protocol is None else asdict(protocol),
        }
        key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:24]
        return CacheEntry(self, key, settings)

    def entries(self) -> list[dict]:
        """What is kept, the last used first: key, encoder, dataset, split, size, when it was used, whether it is complete."""
        kept = []
        for folder in self._folders():
            try:
                settings = json.loads((folder / SETTINGS).read_text())
                source = settings["source"]
                row = {"encoder": settings["encoder"], "dataset": source["path"], "split": source["split"]}
            except (OSError, ValueError, LookupError, TypeError, RecursionError):
                what = "interrupted linear probe" if any(folder.glob("*.pt")) else "damaged"
                row = {"encoder": what, "dataset": "", "split": ""}
            used = datetime.fromtimestamp(folder.stat().st_mtime, UTC).isoformat(timespec="minutes")
            complete = (folder / FEATURES).exists()
            kept.append({"key": folder.name, **row, "gib": _size(folder) / GIB, "used": used, "complete": complete})
        return kept

    def table(self) -> str:
        """`entries`, a line each, and the size of all."""
        entries = self.entries()
        form = "{used}  {gib:8.3f} GiB  {encoder}  {dataset} {split}"
        lines = [form.format(**entry) + ("" if entry["complete"] else "  (incomplete)") for entry in entries]
        return "\n".join([*lines, f"{sum(entry['gib'] for entry in entries):.2f} GiB in {self.folder}"])

    def clear(self) -> float:
        """Remove everything; returns how many GiB it took."""
        size = sum(map(_size, self._folders()))
        for folder in self._folders():
            shutil.rmtree(folder, ignore_errors=True)
        return size / GIB

    def shrink(self, but: str) -> None:
        """Remove what was not used for longest until the limit holds, but not the entry of this key."""
        folders = self._folders()
        total = sum(map(_size, folders))
        for folder in reversed(folders):
            if total > self.limit and folder.name != but:
                total -= _size(folder)
                shutil.rmtree(folder, ignore_errors=True)

    def _folders(self) -> list[Path]:
        """The last used first."""
        folders = [path for path in self.folder.iterdir() if path.is_dir()] if self.folder.is_dir() else []
        return sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)


class CacheEntry:
    """Features of one encoder on one split. What cannot be written is not kept, with a warning; what is damaged is removed.

    Args:
        cache: that it is part of.
        key: name of its folder.
        settings: on which it depends.
    """

    def __init__(self, cache: FeatureCache, key: str, settings: dict):
        self.cache, self.key, self.settings, self.folder = cache, key, settings, cache.folder / key
        self._is_full = False

    def load(self) -> tuple[FeatureSet, list[str]] | None:
        """All features, and warnings of what was left out when they were computed; None if they are not complete."""
        if not (self.folder / FEATURES).exists():
            return None
        try:
            tensors, extra = read_tensors(self.folder, FEATURES)
            result = FeatureSet(**tensors, classes=extra["classes"]), extra["messages"]
            self.folder.touch()
        except Exception as error:  # of a damaged file
            self._remove_damaged(error)
            return None
        return result

    def parts(self) -> list[Part]:
        """What an interrupted extraction has left."""
        kept = []
        for path in sorted(self.folder.glob(PARTS)):
            try:
                tensors, extra = read_tensors(self.folder, path.name)
                kept.append(Part(**tensors, labels=extra["labels"]))
            except Exception as error:  # of a damaged file
                self._remove_damaged(error)
                return []
        return kept

    def add_part(self, part: Part) -> None:
        """Keep some of the features, so that an interruption does not lose them."""
        self._write(f"part-{uuid4().hex}.safetensors", {"features": part.features, "keys": part.keys}, {"labels": part.labels})

    def complete(self, result: FeatureSet, messages: list[str]) -> None:
        """Keep all features instead of their parts, with warnings of what was left out."""
        tensors = {name: getattr(result, name) for name in ("features", "labels", "positions", "checksums")}
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size > self.cache.limit:
            logger.warning(
                "the features take %.1f GiB, more than the cache may have (%.1f GiB); they are not kept", size / GIB,
                self.cache.limit / GIB,
            )  # fmt: skip
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        self._write(FEATURES, tensors, {"classes": result.classes, "messages": messages})
        for path in self.folder.glob(PARTS):
            path.unlink(missing_ok=True)
        self.cache.shrink(but=self.key)

    def _write(self, name: str, tensors: dict[str, Tensor], extra: dict) -> None:
        if self._is_full:
            return
        try:
            with writing(self.cache.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            write_below(self.folder, SETTINGS, json.dumps(self.settings, indent=1, default=str))
            write_tensors(self.folder, name, tensors, extra)
        except UserError as error:
            self._is_full = True
            shutil.rmtree(self.folder, ignore_errors=True)
            logger.warning("features are not kept (%s); the evaluation continues without", error)

    def _remove_damaged(self, error: Exception) -> None:
        logger.warning("the features in %s are damaged (%s) and computed again", self.folder, reason(error))
        shutil.rmtree(self.folder, ignore_errors=True)


def weights_fingerprint(encoder: nn.Module | Callable) -> str:
    """Of the values of all weights and of the architecture, so that a changed model under the same name has another one."""
    if not isinstance(encoder, nn.Module):
        return ""
    digest = hashlib.blake2b(repr(encoder).encode(), digest_size=16)
    network = getattr(encoder, "network", encoder)
    configuration = getattr(network, "config", None) or getattr(network, "default_cfg", "")
    digest.update(str(configuration).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def preprocessing(processor: Callable) -> str:
    """What an image processor does, as text."""
    return processor.to_json_string() if hasattr(processor, "to_json_string") else repr(processor)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
