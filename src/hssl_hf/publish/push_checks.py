"""What a push needs, checked before any work and without the Hub: names, license and token."""

import logging
import re

from huggingface_hub import get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hssl_hf.errors import UserError, shown
from hssl_hf.publish.kinds import KINDS
from hssl_hf.publish.licenses import LICENSE

TOKEN = re.compile(r"(hf_|api_|eyJ)[\w.~+/=-]{10,4000}", re.ASCII)  # of a user or an organization, or of a login in a browser
BRANCH = re.compile(r"(?!.*(\.\.|//|@\{|/\.))[A-Za-z0-9][\w./-]{0,199}(?<![./])", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)  # beyond what `validate_repo_id` checks in all releases
NO_TOKEN = "not logged in to the Hub: log in with `hf auth login`, or pass a valid token with --token or HF_TOKEN"
logger = logging.getLogger(__name__)


class PushError(UserError):
    """A push that failed or would fail; the message reports what is visible now and what to do."""


def check_push(
    repository: str,
    revision: str = "main",
    token: bool | str | None = None,
    license: str | None = None,
    commit_message: str = "Upload",
    dry_run: bool = False,
) -> None:
    """Check what a push is given; arguments as of `hub.push`.

    Raises:
        PushError: for a repository, branch, license or title that the Hub would refuse, a token that is none, and without any
            token, of which a dry run only warns.
    """
    _check_repository(repository)
    _check_revision(revision)
    if license is not None and not LICENSE.fullmatch(license):
        near = re.sub(r"[\s_]+", "-", str(license).strip().lower())
        hint = f" Did you mean {near}?" if LICENSE.fullmatch(near) else ""
        raise PushError(
            f"expected the Hub's name of a license, such as apache-2.0 or cc-by-nc-4.0, got {shown(license)}.{hint}"
        )
    if not str(commit_message or "").strip():
        raise PushError("expected a title for the commits, got an empty one; set --commit-message")
    _check_token(token, dry_run)


def _check_repository(repository: str) -> None:
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise PushError(f"expected a repository of the form user/name, got {shown(repository)}: {error}") from error
    if not REPOSITORY.fullmatch(str(repository)):
        raise PushError(f"expected a repository of the form user/name, got {shown(repository)}")


def _check_revision(revision: str) -> None:
    others = [kind for kind in KINDS if kind != "main"]
    if not isinstance(revision, str) or not BRANCH.fullmatch(revision) or revision.endswith(".lock"):
        raise PushError(
            f"expected the name of a branch, of letters, digits and . _ - /, such as main or v2, got {shown(revision)}; set "
            "--revision"
        )
    if COMMIT.fullmatch(revision) or revision.startswith("refs/"):
        raise PushError(f"expected a branch, got {revision}, a commit or reference, which no push can change; set --revision")
    if revision in others or revision.endswith(tuple(f"-{kind}" for kind in others)):
        raise PushError(
            f"expected the branch of the stock model, got {revision!r}; branch names that end in {', '.join(others)} are "
            "reserved for the other exports; set another --revision"
        )


def _check_token(token: bool | str | None, dry_run: bool) -> None:
    """Check that there is a token and that it looks like one; messages do not repeat it."""
    given = token if isinstance(token, str) else None if token is False else get_token()
    if not given:
        if not dry_run:
            raise PushError(NO_TOKEN)
        logger.warning("a push would be refused: %s", NO_TOKEN)
    elif not TOKEN.fullmatch(given):
        raise PushError(
            "expected a token of the Hub, hf_ and letters and digits without spaces, but the one given is not of this form "
            f"({len(given)} characters); pass another with --token or HF_TOKEN, or log in with `hf auth login`"
        )
