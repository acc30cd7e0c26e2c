"""Where weights come from: the official checkpoint that was converted, or the model from which a training started."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import timm
import yaml
from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError

from hssl_hf.errors import shown
from hssl_hf.fields import FieldError, Section, make
from hssl_hf.publish.licenses import LICENSE, UNKNOWN, LicenseError, conditions, is_non_commercial
from hssl_hf.publish.redaction import is_hub_id, public_path

logger = logging.getLogger(__name__)
FACTS = "facts.yaml"
LONGEST = 200  # characters of a text of others


@dataclass(frozen=True)
class Release(Section):
    """The official checkpoint that was converted.

    Args:
        method: whose checkpoint it is.
        file: its name.
        detected: by the layout of the file, which proves nothing; otherwise the user named the method.
    """

    method: str
    file: str | None = None
    detected: bool = True


@dataclass(frozen=True)
class Origin(Section):
    """The weights from which a training started, as far as is known and may be public.

    Args:
        name: repository on the Hub, last part of a local path, or URL.
        revision: branch or tag, where the recipe names one.
        commit: of a repository on the Hub.
        license: by the Hub's name; None if it is not known.
        license_name, license_link: of a license that the Hub lists as "other".
        base_model: repositories for the card's metadata: the Hub's own, or those that the card of a local folder names.
        release: the checkpoint from which these weights were converted.
    """

    name: str
    revision: str | None = None
    commit: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    base_model: tuple[str, ...] = ()
    release: Release | None = None


def read_origin(path: str, revision: str | None = None, commit: str | None = None, declared: str | None = None) -> Origin:
    """The origin of weights, from the card beside them.

    Args:
        path: a folder, or a repository on the Hub.
        revision: of the repository.
        commit: that the weights were loaded from; None for a folder.
        declared: license in the model's configuration.
    """
    local = Path(path).is_dir()
    card = _metadata(path, None if local else commit)
    license = _license(card, declared)
    if (link := license.get("license_link")) and "://" not in link:  # a file beside the card
        license["license_link"] = None if local else f"https://huggingface.co/{path}/blob/{commit or 'main'}/{link}"
    base_model = tuple(name for name in _list(card.get("base_model")) if is_hub_id(_line(name))) if local else (path,)
    name = Path(path).resolve().name if local else path
    return Origin(name, revision, commit, **license, base_model=base_model, release=_release(path, None if local else commit))


def timm_origin(architecture: str, kwargs: dict | None) -> Origin | None:
    """The origin of weights that timm loads when it makes a model with these arguments; None if it loads none."""
    kwargs = kwargs or {}
    if file := kwargs.get("checkpoint_path"):
        return Origin(public_path(str(file)))
    if not kwargs.get("pretrained"):
        return None
    if isinstance(tag := kwargs.get("pretrained_cfg"), str):
        architecture = f"{architecture.partition('.')[0]}.{tag}"
    own = timm.get_pretrained_cfg(architecture)
    config = own.to_dict() if own else {}
    for name in ("pretrained_cfg", "pretrained_cfg_overlay"):
        if isinstance(other := kwargs.get(name), dict):  # other weights, under a license of their own
            config = {"license": None, "hf_hub_id": None, **other}
    repository = _line(config.get("hf_hub_id"))
    name = repository or _line(config.get("url") or config.get("file")) or architecture
    license = _license({"license": config.get("license")}, None)
    return Origin(public_path(name), **license, base_model=(repository,) if is_hub_id(repository) else ())


def as_plain(origin: Origin | Release | None) -> dict | None:
    """Plain values for a manifest or the facts of a card."""
    return None if origin is None else asdict(origin)


def settle(declared: str | None, chosen: str | None, origin: Origin | None) -> str | None:
    """The license of a model.

    Args:
        declared: that of its configuration.
        chosen: for its card.
        origin: of the weights that the training started from, whose license the model inherits.
    Returns:
        the chosen one, else the declared, else the inherited one; None if there is none, or it is not known.
    Raises:
        LicenseError: if a later one of inherited, declared and chosen lacks a condition of an earlier one.
    """
    inherited = origin.license if origin else None
    terms = [(inherited, f"the training started from {origin.name if origin else ''},"), (declared, "the model's weights are")]
    for number, (term, reason) in enumerate(terms):
        for wish, setting in [(declared, "model.license"), (chosen, "license")][number:]:
            if term and wish and not conditions(term) <= conditions(wish):
                use = ", which forbids commercial use" if is_non_commercial(term) else ""
                raise LicenseError(
                    f"{setting}: expected {term} or a license with all of its conditions, since {reason} under {term}{use}; "
                    f"got {shown(wish)}. Leave {setting} out to keep {term}"
                )
    return chosen or declared or inherited


def _metadata(path: str, commit: str | None) -> dict:
    """Metadata of the model card; empty where there is none that can be read."""
    text = _read(path, commit, "README.md") or (_read(path, "main", "README.md") if commit else None)
    try:
        return ModelCard(text, ignore_metadata_errors=True).data.to_dict() if text else {}
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        logger.warning("the model card of %s cannot be read, so the license of its weights counts as unknown: %s", path, error)
        return {}


def _release(path: str, commit: str | None) -> Release | None:
    try:
        return make(Release, yaml.safe_load(_read(path, commit, FACTS) or "")["release"], "release")
    except (yaml.YAMLError, FieldError, LookupError, TypeError):
        return None


def _read(path: str, commit: str | None, name: str) -> str | None:
    """Content of a file of a folder, or of a commit on the Hub; None if there is none."""
    try:
        file = Path(hf_hub_download(path, name, revision=commit)) if commit else Path(path, name)
        return file.read_text(errors="replace") if file.is_file() else None
    except RemoteEntryNotFoundError:
        return None
    except (HfHubHTTPError, OSError, ValueError) as error:
        logger.warning("%s of %s cannot be read: %s", name, path, error)
        return None


def _license(card: dict, declared: str | None) -> dict:
    """License with its name and link, from the metadata of a card; that of the configuration if it is stricter."""
    names = [name for name in map(_line, _list(card.get("license"))) if name and name.lower() != UNKNOWN]
    name, link = _line(card.get("license_name")), _line(card.get("license_link"))
    license = names[0].lower() if len(names) == 1 else "other" if names else None
    if len(names) > 1 or (license and not LICENSE.fullmatch(license)):
        license, name = "other", name or ", ".join(names)
    if declared and (license is None or (is_non_commercial(declared) and not is_non_commercial(license, name))):
        return {"license": declared}
    return {"license": license, "license_name": name, "license_link": link} if license else {}


def _list(value) -> list:
    return value if isinstance(value, list) else [value]


def _line(value) -> str | None:
    """A text of others in one line, cut where it is long; None if it is none."""
    if not isinstance(value, str):
        return None
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())[:LONGEST] or None
