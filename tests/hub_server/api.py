"""Endpoints below /api: users, repositories, commits, branches, lists of files."""

import json

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from tests.hub_server.access import Refused, commit_at, repository_of, split_revision, user_of
from tests.hub_server.store import Blob, Repository, is_lfs

router = APIRouter(prefix="/api")


@router.get("/whoami-v2")
def whoami(request: Request):
    user = user_of(request)
    if user is None:
        raise Refused(401, "", "Invalid username or password.")
    return {"type": "user", "name": user.name, "orgs": [], "auth": {"accessToken": {"role": user.role}}}


@router.post("/repos/create")
async def create(request: Request):
    body, user, store = await request.json(), user_of(request), request.app.state.store
    kind, owner = f"{body.get('type', 'model')}s", body.get("organization") or (user and user.name)
    if user is None or user.role != "write" or owner != user.name:
        raise Refused(403 if user else 401, "", f"You don't have the rights to create a {kind[:-1]} under this namespace")
    name = f"{owner}/{body['name']}"
    if (kind, name) in store.repositories:
        raise Refused(409, "", "You already created this model repo", url=f"/{name}")
    private = body.get("visibility") == "private" or bool(body.get("private"))
    store.repositories[kind, name] = Repository(name, kind, private)
    return {"url": f"{request.base_url}{name}", "name": name, "id": name}


@router.post("/validate-yaml")
def validate() -> dict:
    return {"errors": [], "warnings": []}


@router.get("/{kind}/{owner}/{short}")
def info(request: Request, kind: str, owner: str, short: str, revision: str = "main"):
    repository = repository_of(request, kind, f"{owner}/{short}")
    commit, card = commit_at(repository, revision), repository.card(commit_at(repository, revision))
    return {
        "id": repository.name, "modelId": repository.name, "sha": commit.id, "lastModified": commit.date,
        "private": repository.private, "gated": "auto" if repository.gated else False, "cardData": card,
        "tags": card.get("tags", []), "pipeline_tag": card.get("pipeline_tag"), "library_name": card.get("library_name"),
        "siblings": [{"rfilename": path, **_size(blob)} for path, blob in commit.files.items()],
    }  # fmt: skip


@router.get("/{kind}/{owner}/{short}/revision/{revision:path}")
def info_at(request: Request, kind: str, owner: str, short: str, revision: str):
    return info(request, kind, owner, short, revision)


@router.get("/{kind}/{owner}/{short}/tree/{rest:path}")
def tree(request: Request, kind: str, owner: str, short: str, rest: str, recursive: bool = False):
    repository = repository_of(request, kind, f"{owner}/{short}", content=True)
    revision, folder = split_revision(rest)
    below = f"{folder}/" if folder else ""
    files, folders = [], set()
    for path, blob in sorted(commit_at(repository, revision).files.items()):
        if path.startswith(below):
            inner = path[len(below) :].split("/")
            folders |= {below + "/".join(inner[:depth]) for depth in range(1, len(inner) if recursive else min(2, len(inner)))}
            if recursive or len(inner) == 1:
                files.append({"type": "file", "path": path, **_size(blob)})
    if folder and not files and not folders:
        raise Refused(404, "EntryNotFound", f"{folder} does not exist on {revision}")
    return [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)] + files


@router.post("/{kind}/{owner}/{short}/paths-info/{revision:path}")
async def paths_info(request: Request, kind: str, owner: str, short: str, revision: str):
    form = await request.form()
    commit = commit_at(repository_of(request, kind, f"{owner}/{short}", content=True), revision)
    return [{"type": "file", "path": p, **_size(commit.files[p])} for p in form.getlist("paths") if p in commit.files]


@router.get("/{kind}/{owner}/{short}/refs")
def refs(request: Request, kind: str, owner: str, short: str):
    repository = repository_of(request, kind, f"{owner}/{short}")
    names = {name: {"name": name, "targetCommit": commit} for name, commit in repository.branches.items()}
    pulls = [{**ref, "ref": name} for name, ref in names.items() if name.startswith("refs/pr/")]
    branches = [{**ref, "ref": f"refs/heads/{name}"} for name, ref in names.items() if not name.startswith("refs/pr/")]
    return {"branches": branches, "tags": [], "converts": [], "pullRequests": pulls}


@router.get("/{kind}/{owner}/{short}/commits/{revision:path}")
def commits(request: Request, kind: str, owner: str, short: str, revision: str):
    repository = repository_of(request, kind, f"{owner}/{short}")
    commit_at(repository, revision)
    author = [{"user": owner}]
    return [
        {"id": c.id, "title": c.title, "message": "", "date": c.date, "authors": author} for c in repository.history(revision)
    ]


@router.post("/{kind}/{owner}/{short}/branch/{branch:path}")
async def create_branch(request: Request, kind: str, owner: str, short: str, branch: str):
    repository = repository_of(request, kind, f"{owner}/{short}", write=True)
    if branch in repository.branches:
        raise Refused(409, "", f"Reference already exists: {branch}")
    body = await request.body()
    start = (json.loads(body) if body else {}).get("startingPoint") or "main"
    repository.branches[branch] = commit_at(repository, start).id
    return {}


@router.post("/{kind}/{owner}/{short}/preupload/{revision:path}")
async def preupload(request: Request, kind: str, owner: str, short: str, revision: str):
    pull = "create_pr" in request.query_params
    repository = repository_of(request, kind, f"{owner}/{short}", write=not pull)
    commit, modes = commit_at(repository, revision), []
    for file in (await request.json())["files"]:
        existing = commit.files.get(file["path"])
        mode = {"path": file["path"], "uploadMode": "lfs" if is_lfs(file["path"], file["size"]) else "regular"}
        modes.append({**mode, "shouldIgnore": False, **({"oid": existing.etag} if existing else {})})
    return {"files": modes, "commitOid": commit.id}


@router.post("/{kind}/{owner}/{short}/commit/{revision:path}")
async def commit(request: Request, kind: str, owner: str, short: str, revision: str):
    pull = request.query_params.get("create_pr") == "1"
    repository, lines = repository_of(request, kind, f"{owner}/{short}", write=not pull), await request.body()
    if revision not in repository.branches:
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    parent = json.loads(lines.splitlines()[0])["value"].get("parentCommit")
    if parent and parent != repository.branches[revision]:
        raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
    created, name = request.app.state.store.apply(repository, revision, lines, pull)
    address = f"{request.base_url}{repository.name}"
    opened = f"{address}/discussions/{name.rsplit('/', 1)[1]}" if name else None
    body = {"success": True, "commitOid": created.id, "commitUrl": f"{address}/commit/{created.id}", "pullRequestUrl": opened}
    return JSONResponse(body)


def _size(blob: Blob) -> dict:
    lfs = {"lfs": {"oid": blob.sha256, "sha256": blob.sha256, "size": len(blob.content), "pointerSize": 134}}
    return {"size": len(blob.content), "oid": blob.oid, "blobId": blob.oid, **(lfs if blob.lfs else {})}
