"""Who may do what, and refusals in the Hub's words."""

from fastapi import Request
from fastapi.responses import JSONResponse

from tests.hub_server.store import Commit, Repository, User


class Refused(Exception):
    """A refusal with the headers by which huggingface_hub tells its kinds apart."""

    def __init__(self, status: int, code: str, message: str, **more):
        self.status, self.code, self.message, self.more = status, code, message, more

    def response(self) -> JSONResponse:
        headers = {"X-Error-Code": self.code, "X-Error-Message": self.message} if self.code else {}
        return JSONResponse({"error": self.message, **self.more}, status_code=self.status, headers=headers)


def user_of(request: Request) -> User | None:
    """The user whose token came, None without one."""
    header = request.headers.get("authorization", "")
    if not header:
        return None
    user = request.app.state.store.users.get(header.removeprefix("Bearer "))
    if user is None:
        raise Refused(401, "", "Invalid credentials in Authorization header")
    return user


def repository_of(request: Request, kind: str, name: str, write: bool = False, content: bool = False) -> Repository:
    """The repository, if this request may see it, write to it, or read files of it."""
    user, repository = user_of(request), request.app.state.store.repositories.get((kind, name.removesuffix(".git")))
    owner = user is not None and user.name == name.split("/")[0]
    if repository is None or (repository.private and not owner):
        raise Refused(404 if user else 401, "RepoNotFound", "Repository not found")
    if write and not (owner and user.role == "write"):
        raise Refused(403 if user else 401, "", "You don't have the rights to write to this repository")
    if content and repository.gated and not owner and (user is None or user.name not in repository.admitted):
        raise Refused(403 if user else 401, "GatedRepo", f"Access to model {name} is restricted")
    return repository


def commit_at(repository: Repository, revision: str) -> Commit:
    commit = repository.at(revision)
    if commit is None:
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return commit


def split_revision(rest: str) -> tuple[str, str]:
    """A revision and what follows it in an address; pull requests have slashes in their names."""
    pieces = rest.split("/")
    length = 3 if rest.startswith("refs/") else 1
    return "/".join(pieces[:length]), "/".join(pieces[length:])
