"""File contents: LFS uploads, single or multipart, and downloads with ranges."""

import re

from fastapi import APIRouter, Request, Response

from tests.hub_server.access import Refused, commit_at, repository_of, split_revision

router = APIRouter()
PART = 2**20


@router.post("/{owner}/{short}/info/lfs/objects/batch")
@router.post("/{kind}/{owner}/{short}/info/lfs/objects/batch")
async def batch(request: Request, owner: str, short: str, kind: str = "models"):
    repository_of(request, kind, f"{owner}/{short}", write=True)
    body, objects = await request.json(), []
    multipart = False
    for requested in body["objects"]:
        blob = {"oid": requested["oid"], "size": requested["size"]}
        if requested["oid"] not in request.app.state.store.blobs:
            url, header = f"{request.base_url}_lfs/{requested['oid']}", {}
            parts = -(-requested["size"] // PART)
            if "multipart" in body["transfers"] and parts > 1:
                header = {"chunk_size": str(PART), **{str(n): f"{url}/{n}" for n in range(1, parts + 1)}}
                multipart = True
            blob["actions"] = {"upload": {"href": f"{url}/complete" if header else url, "header": header}}
        objects.append(blob)
    return {"transfer": "multipart" if multipart else "basic", "objects": objects}


@router.put("/_lfs/{oid}")
async def upload(request: Request, oid: str):
    request.app.state.store.blobs[oid] = await request.body()
    return Response(headers={"ETag": '"complete"'})


@router.put("/_lfs/{oid}/{number}")
async def upload_part(request: Request, oid: str, number: int):
    request.app.state.store.parts.setdefault(oid, {})[number] = await request.body()
    return Response(headers={"ETag": f'"part-{number}"'})


@router.post("/_lfs/{oid}/complete")
async def complete_upload(request: Request, oid: str):
    store, parts = request.app.state.store, (await request.json())["parts"]
    store.blobs[oid] = b"".join(store.parts[oid][part["partNumber"]] for part in parts)
    return {}


@router.api_route("/datasets/{owner}/{short}/resolve/{rest:path}", methods=["GET", "HEAD"])
def resolve_dataset(request: Request, owner: str, short: str, rest: str):
    return _resolve(request, "datasets", f"{owner}/{short}", rest)


@router.api_route("/{owner}/{short}/resolve/{rest:path}", methods=["GET", "HEAD"])
def resolve_model(request: Request, owner: str, short: str, rest: str):
    return _resolve(request, "models", f"{owner}/{short}", rest)


def _resolve(request: Request, kind: str, name: str, rest: str) -> Response:
    repository = repository_of(request, kind, name, content=True)
    revision, path = split_revision(rest)
    commit = commit_at(repository, revision)
    if path not in commit.files:
        raise Refused(404, "EntryNotFound", f"{path} does not exist on {revision}")
    blob = commit.files[path]
    headers = {"X-Repo-Commit": commit.id, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
    if blob.lfs:
        headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.content))}
    content, status = blob.content, 200
    if span := re.match(r"bytes=(\d*)-(\d*)", request.headers.get("range", "")):
        first, last = span.groups()
        start = int(first) if first else len(content) - int(last)
        stop = int(last) + 1 if first and last else len(content)
        headers["Content-Range"] = f"bytes {start}-{min(stop, len(content)) - 1}/{len(content)}"
        content, status = content[start:stop], 206
    if request.method == "HEAD":
        return Response(status_code=status, headers={**headers, "Content-Length": str(len(content))})
    return Response(content, status, headers, media_type="application/octet-stream")
