"""One repository, a branch per kind of export: staged in a folder, checked, and pushed so that no push is visible in part.

Every branch changes by one commit, made when all of its files are uploaded; `main` comes last. Files that an earlier try has
uploaded are not sent again. If another push happens meanwhile, this one starts over; it ends when all branches are its own.
"""

import logging
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, errors

from hssl_hf.data.files import open_below
from hssl_hf.errors import writing
from hssl_hf.publish.export import CardContext, export_backbone, export_model, require_replaceable
from hssl_hf.publish.file_formats import require_formats
from hssl_hf.publish.kinds import KINDS, branch
from hssl_hf.publish.origin import settle, timm_origin
from hssl_hf.publish.push_checks import PushError, check_push
from hssl_hf.publish.secret_scan import redact, refuse_secrets
from hssl_hf.publish.to_backbone import to_backbone

if TYPE_CHECKING:
    from hssl_hf.models.modeling_student_teacher import StudentTeacherPreTrainedModel

try:
    from huggingface_hub.utils import httpx
except ImportError:  # huggingface-hub 1
    import httpx

logger = logging.getLogger(__name__)
ALLOWED = (
    "README.md", "config.json", "facts.yaml", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json",
    "preprocessor_config.json", "curves.png", "figures/*.png", ".eval_results/*.yaml", "onnx/model.onnx*",
)  # fmt: skip
TRIES, FIRST_PAUSE = 6, 1.0
TRANSIENT = {408, 429, 500, 502, 503, 504}


def stage(
    model: "StudentTeacherPreTrainedModel",
    folder: Path | str,
    *,
    network: str | None = None,
    processor=None,
    context: CardContext,
    onnx=False,
    max_shard_size: int | str = "50GB",
) -> Path:
    """Write every kind of export into a folder of its name, checked and with its card; `backbone` only where it exists."""
    folder = Path(folder)
    shared = {"processor": processor, "context": context, "max_shard_size": max_shard_size}
    export_model(model, folder / "training", **shared)
    shared["network"] = network
    export_backbone(model, folder / "timm", kind="timm", **shared)
    if to_backbone(model.get_network(network).base, model.config.image_size) is not None:
        export_backbone(model, folder / "backbone", kind="backbone", **shared)
    else:  # none from an earlier call either
        require_replaceable(folder / "backbone")
        shutil.rmtree(folder / "backbone", ignore_errors=True)
    export_backbone(model, folder / "main", onnx=onnx, **shared)
    return folder


def push_model(
    model: "StudentTeacherPreTrainedModel",
    repository: str,
    *,
    license: str | None = None,
    tags: list[str] | None = None,
    processor=None,
    max_shard_size: int | str = "50GB",
    **kwargs,
) -> dict[str, CommitInfo]:
    """Stage a model and push it, without information about its training.

    `license` and `tags` are for the card, `processor` and `max_shard_size` those of `export_backbone`; `kwargs` and errors are
    those of `push`.
    """
    revision = kwargs.get("revision", "main")
    checked = {name: kwargs[name] for name in ("token", "commit_message", "dry_run") if name in kwargs}
    check_push(repository, revision, license=license, **checked)
    settle(model.config.license, license, timm_origin(model.config.backbone, model.config.backbone_kwargs))
    about = {"license": license, "tags": tags}
    context = CardContext(about, repository=repository, revision=revision)
    with tempfile.TemporaryDirectory() as folder:
        staged = stage(model, Path(folder), processor=processor, context=context, max_shard_size=max_shard_size)
        return push(staged, repository, **kwargs)


def push(
    folder: Path | str,
    repository: str,
    *,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str = "main",
    create_pr: bool = False,
    commit_message: str = "Upload a pre-trained backbone",
    commit_description: str | None = None,
    dry_run: bool = False,
) -> dict[str, CommitInfo]:
    """Push staged branches to the Hub.

    Files are read once, into copies which are checked and uploaded: links are refused, files must be what their names promise,
    and none may contain a secret.

    Args:
        folder: from `stage`.
        repository: user/name; created if it does not exist.
        private: visibility of a repository that is created.
        token: by default, or if True, that of `hf auth login` or HF_TOKEN.
        revision: branch of the stock model; the others are named after it (`kinds.branch`).
        create_pr: open pull requests instead of committing.
        commit_message: title of the commits or pull requests.
        commit_description: their description.
        dry_run: make all checks, and upload nothing.
    Returns:
        the commit or pull request, by kind of branch; none of a dry run.
    Raises:
        PushError: if the Hub refuses, cannot be reached, or receives other pushes all the time, and as of `check_push`.
        UserError: if a file is a link, of another format than its name, or contains what looks like a secret.
    """
    check_push(repository, revision, token, commit_message=commit_message, dry_run=dry_run)
    folder = Path(folder)
    api, message = HfApi(token=token), {"commit_message": commit_message, "commit_description": commit_description}
    with tempfile.TemporaryDirectory(prefix=".upload-", dir=folder) as copies:
        files = {kind: _copy_files(folder, kind, Path(copies) / kind) for kind in KINDS if (folder / kind).is_dir()}
        if "main" not in files:
            raise PushError(f"{folder} holds no staged export; expected folders {', '.join(KINDS)}, as `stage` writes them")
        for branch_files in files.values():
            require_formats(branch_files)
            refuse_secrets(branch_files, token if isinstance(token, str) else None)
        if dry_run:
            return {}
        try:
            _retry(api.create_repo, repository, private=private, exist_ok=True)
            for attempt in range(TRIES):
                commits = _push_once(api, repository, files, revision, create_pr, message)
                if commits is not None:
                    return commits
                logger.warning("%s was changed by another push; starting over", repository)
                time.sleep(random.uniform(0, FIRST_PAUSE * 2**attempt))  # so that two pushes do not undo each other in step
        except (httpx.HTTPError, errors.HFValidationError, RuntimeError, OSError) as error:
            raise PushError(_explain(error, repository)) from error
    raise PushError(
        f"{repository} kept being changed by other pushes; its branches may belong to different ones. Push again once they "
        "have finished"
    )


def staged_files(folder: Path | str) -> dict[str, Path]:
    """Files to be uploaded, by their path in the repository; other files in the folder are not."""
    folder = Path(folder)
    return {path.relative_to(folder).as_posix(): path for pattern in ALLOWED for path in sorted(folder.glob(pattern))}


def _copy_files(folder: Path, kind: str, target: Path) -> dict[str, Path]:
    """Copy the files of a kind; raises a UserError for links, and if the disk is full."""
    for name in staged_files(folder / kind):
        with writing(target / name), open_below(folder, f"{kind}/{name}") as file:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with (target / name).open("wb") as copy:
                shutil.copyfileobj(file, copy, 2**22)
    return staged_files(target)


def _push_once(
    api: HfApi, repository: str, files: dict, revision: str, create_pr: bool, message: dict
) -> dict[str, CommitInfo] | None:
    """One commit per branch; None if another push happened in between."""
    branches = {kind: branch(revision, kind) for kind in files}
    heads = {kind: _head(api, repository, name) for kind, name in branches.items()}
    commits = {}
    for kind, name in branches.items():
        try:
            commits[kind] = _commit(api, repository, files[kind], name, heads[kind], create_pr, message)
        except errors.HfHubHTTPError as error:
            if _status(error) == 412:
                return None
            raise
    if not create_pr and any(_head(api, repository, name) != commits[kind].oid for kind, name in branches.items()):
        return None
    return commits


def _head(api: HfApi, repository: str, name: str) -> str:
    """The newest commit of a branch, which is created if it does not exist."""
    try:
        return _retry(api.model_info, repository, revision=name).sha
    except errors.RevisionNotFoundError:
        _retry(api.create_branch, repository, branch=name, exist_ok=True)
        return _retry(api.model_info, repository, revision=name).sha


def _commit(api: HfApi, repository: str, files: dict[str, Path], name: str, head: str, create_pr: bool, message: dict):
    existing = _retry(api.list_repo_files, repository, revision=head)

    def commit():
        operations = [CommitOperationAdd(path, file) for path, file in files.items()]
        operations += [CommitOperationDelete(path) for path in existing if path not in files and path != ".gitattributes"]
        return api.create_commit(repository, operations, **message, revision=name, parent_commit=head, create_pr=create_pr)

    return _retry(commit)


def _retry(function, *args, **kwargs):
    """Call the Hub, and retry after transient errors with growing pauses."""
    for trial in range(TRIES):
        try:
            return function(*args, **kwargs)
        except (httpx.HTTPError, RuntimeError) as error:
            if trial == TRIES - 1 or not _is_transient(error):
                raise
        time.sleep(FIRST_PAUSE * 2**trial)


def _is_transient(error: BaseException | None) -> bool:
    """Whether a cause of the error is transient; uploads wrap it."""
    while error is not None and not isinstance(error, httpx.TransportError) and _status(error) not in TRANSIENT:
        error = error.__cause__
    return error is not None


def _status(error: BaseException) -> int | None:
    """Status of the response that an error of the Hub was raised for."""
    return error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None


def _explain(error: Exception, repository: str) -> str:
    if isinstance(error, errors.HFValidationError):
        return f"expected a repository of the form user/name, got {repository!r}: {error}"
    if isinstance(error, errors.LocalTokenNotFoundError) or _status(error) == 401:
        return "not logged in to the Hub: log in with `hf auth login`, or pass a valid token with --token or HF_TOKEN"
    if _status(error) == 403:
        return f"this token may not write to {repository!r}; it needs the role 'write' and write access to that repository"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no repository {repository!r}, or this token may not see it"
    refusal = redact(str(error))
    return f"the Hub could not be reached or refused: {refusal}\nPush again: uploaded files are kept, and main is unchanged"
