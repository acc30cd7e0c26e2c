"""One repository, three branches: staged in a folder, checked, and brought to the Hub so that nothing half is visible.

Every branch changes by one commit, whose files are complete before it is made; `main` comes last. What was sent by an earlier
try is not sent again. If somebody else pushes meanwhile, the push starts over, and ends only when all branches are its own.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hssl_hf.errors import UserError
from hssl_hf.publish.export import KINDS, CardContext, export_backbone, export_model
from hssl_hf.publish.model_card import branch
from hssl_hf.publish.secret_scan import refuse_secrets

if TYPE_CHECKING:
    from hssl_hf.models.modeling_student_teacher import StudentTeacherPreTrainedModel

ALLOWED = (
    "README.md", "config.json", "facts.yaml", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json",
    "preprocessor_config.json", "curves.png", "pictures/*.png", ".eval_results/*.yaml", "onnx/model.onnx*",
)  # fmt: skip
TRIES, FIRST_PAUSE = 6, 1.0
PASSING = {408, 429, 500, 502, 503, 504}


class PushError(UserError):
    """A push that did not come through; the message says what is visible now and what to do."""


def stage(
    model: "StudentTeacherPreTrainedModel",
    folder: Path,
    *,
    network: str | None = None,
    processor=None,
    context: CardContext,
    onnx=False,
) -> Path:
    """Write the three branches into `folder/training`, `folder/timm` and `folder/main`, checked and with their cards."""
    export_model(model, folder / "training", processor=processor, context=context)
    shared = {"network": network, "processor": processor, "context": context}
    export_backbone(model, folder / "timm", kind="timm", **shared)
    export_backbone(model, folder / "main", onnx=onnx, **shared)
    return folder


def push_model(
    model: "StudentTeacherPreTrainedModel", repository: str, *, license: str | None = None, **more
) -> dict[str, str]:
    """Stage a model and push it; of the training it tells nothing. `more` and errors are those of `push`."""
    context = CardContext({"license": license}, repository=repository, revision=more.get("revision", "main"))
    with tempfile.TemporaryDirectory() as folder:
        return push(stage(model, Path(folder), context=context), repository, **more)


def push(
    folder: Path,
    repository: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str = "main",
    create_pr: bool = False,
    commit_message: str = "Upload a pre-trained backbone",
) -> dict[str, str]:
    """Bring staged branches to the Hub.

    Args:
        folder: from `stage`.
        repository: user/name; created if there is none.
        private: of a repository that is created.
        token: by default the one that `hf auth login` or HF_TOKEN has left.
        revision: branch of the stock model; the others are named after it (`card.branch`).
        create_pr: open pull requests instead of committing.
        commit_message: title of the commits or pull requests.
    Returns:
        address of the commit or pull request, by kind of branch.
    Raises:
        PushError: if the Hub refuses or cannot be reached, or others keep pushing.
        ValueError: if a file holds what looks like a secret.
    """
    files = {kind: staged_files(folder / kind) for kind in KINDS}
    for listed in files.values():
        refuse_secrets(listed, token)
    api = HfApi(token=token)
    try:
        _ask(api.create_repo, repository, private=private, exist_ok=True)
        for _ in range(TRIES):
            done = _push_once(api, repository, files, revision, create_pr, commit_message)
            if done is not None:
                return done
            print(f"somebody else is pushing to {repository}; starting over", file=sys.stderr)
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, RuntimeError, OSError) as error:
        raise PushError(_explain(error, repository)) from error
    raise PushError(
        f"others kept pushing to {repository}; its branches may be of different pushes. Push again when they are done"
    )


def staged_files(folder: Path) -> dict[str, Path]:
    """Files to be uploaded, by their path inside the repository; whatever else lies there stays there."""
    return {path.relative_to(folder).as_posix(): path for pattern in ALLOWED for path in sorted(folder.glob(pattern))}


def _push_once(api: HfApi, repository: str, files: dict, revision: str, create_pr: bool, message: str) -> dict[str, str] | None:
    """One commit per branch; None if another push came in between."""
    branches = {kind: branch(revision, kind) for kind in KINDS}
    heads, done = {kind: _head(api, repository, name) for kind, name in branches.items()}, {}
    for kind, name in branches.items():
        try:
            done[kind] = _commit(api, repository, files[kind], name, heads[kind], create_pr, message)
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code == 412:
                return None
            raise
    if not create_pr and any(_head(api, repository, name) != done[kind].oid for kind, name in branches.items()):
        return None
    return {kind: info.pr_url or info.commit_url for kind, info in done.items()}


def _head(api: HfApi, repository: str, name: str) -> str:
    """The newest commit of a branch, which is made if there is none."""
    try:
        return _ask(api.model_info, repository, revision=name).sha
    except RevisionNotFoundError:
        _ask(api.create_branch, repository, branch=name, exist_ok=True)
        return _ask(api.model_info, repository, revision=name).sha


def _commit(api: HfApi, repository: str, files: dict[str, Path], name: str, head: str, create_pr: bool, message: str):
    there = _ask(api.list_repo_files, repository, revision=head)

    def once():
        operations = [CommitOperationAdd(path, file) for path, file in files.items()]
        operations += [CommitOperationDelete(path) for path in there if path not in files and path != ".gitattributes"]
        return api.create_commit(
            repository, operations, commit_message=message, revision=name, parent_commit=head, create_pr=create_pr
        )

    return _ask(once)


def _ask(function, *arguments, **named):
    """Ask the Hub, again after a pause where the trouble may pass."""
    for trial in range(TRIES):
        try:
            return function(*arguments, **named)
        except (HfHubHTTPError, RuntimeError, httpx2.TransportError) as error:
            if trial == TRIES - 1 or not _may_pass(error):
                raise
        time.sleep(FIRST_PAUSE * 2**trial)


def _may_pass(error: BaseException | None) -> bool:
    """Whether a cause of the error is one that passes; uploads wrap it."""
    while error is not None:
        if isinstance(error, httpx2.TransportError):
            return True
        if isinstance(error, HfHubHTTPError):
            return error.response is not None and error.response.status_code in PASSING
        error = error.__cause__
    return False


def _explain(error: Exception, repository: str) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if isinstance(error, HFValidationError):
        return f"{repository!r} is no name of a repository; expected user/name: {error}"
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return "the Hub does not know who you are: log in with `hf auth login`, or give a valid token with --token or HF_TOKEN"
    if status == 403:
        return f"this token may not write to {repository!r}; it needs the role 'write', and you the right to write there"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no repository {repository!r}, or this token may not see it"
    return f"the Hub could not be reached or refused: {error}\nPush again: what has been sent is kept, and main is as it was"
