"""Access rights, and the Hub's error responses."""

from fastapi import Request
from fastapi.responses import JSONResponse

from tests.hub_server.store import Commit, Repository, User


class Refused(Exception):
    """An error response with the headers by which huggingface_hub distinguishes its kinds."""

    def __init__(self, status: int, code: str, message: str, **content):
        self.status, self.code, self.message, self.content = status, code, message, content

    def response(self) -> JSONResponse:
        headers = {"X-Error-Code": self.code, "X-Error-Message": self.message} if self.code else {}
        return JSONResponse({"error": self.message, **self.content}, status_code=self.status, headers=headers)


def user_of(request: Request) -> User | None:
    """The user that the request's token belongs to, None without a token."""
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
    """The revision at the start of a path, and the rest; revisions of pull requests contain slashes."""
    components = rest.split("/")
    length = 3 if rest.startswith("refs/") else 1
    return "/".join(components[:length]), "/".join(components[length:])
