"""Repositories of a Hub in memory: blobs, commits, branches, access rights."""

import base64
import fnmatch
import hashlib
import json
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime

import yaml

LFS_PATTERNS = ("*.safetensors", "*.parquet", "*.tar", "*.onnx", "*.png")


@dataclass(frozen=True)
class Blob:
    """A file's content: `oid` is its hash in git, `sha256` that in LFS."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """The complete tree of files at one moment."""

    id: str
    files: dict[str, Blob]
    title: str
    parent: str | None
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"))


@dataclass
class Repository:
    """One repository with its branches."""

    name: str
    kind: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    admitted: set[str] = field(default_factory=set)

    def __post_init__(self):
        self.commit("main", {}, "initial commit")

    def commit(self, branch: str, files: dict[str, Blob], title: str) -> Commit:
        commit = Commit(secrets.token_hex(20), files, title, self.branches.get(branch))
        self.commits[commit.id] = commit
        self.branches[branch] = commit.id
        return commit

    def at(self, revision: str) -> Commit | None:
        """The commit of a branch, or of a full or abbreviated id."""
        if revision in self.branches:
            return self.commits[self.branches[revision]]
        matches = [commit for commit in self.commits.values() if len(revision) >= 7 and commit.id.startswith(revision)]
        return matches[0] if len(matches) == 1 else None

    def history(self, revision: str) -> list[Commit]:
        commit, commits = self.at(revision), []
        while commit is not None:
            commits.append(commit)
            commit = self.commits.get(commit.parent)
        return commits

    def card(self, commit: Commit) -> dict:
        text = commit.files["README.md"].content.decode() if "README.md" in commit.files else ""
        return (yaml.safe_load(text.split("---")[1]) or {}) if text.startswith("---\n") else {}


@dataclass(frozen=True)
class User:
    name: str
    role: str = "write"


@dataclass
class Store:
    """Users by token, repositories by kind and name, uploaded LFS blobs by sha256."""

    users: dict[str, User] = field(default_factory=dict)
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)

    def apply(self, repository: Repository, branch: str, lines: bytes, pull: bool) -> tuple[Commit, str | None]:
        """Apply a commit in the Hub's format of JSON lines; a pull request becomes a branch of its own."""
        files, title = dict(repository.at(branch).files), ""
        for entry in (json.loads(line) for line in lines.splitlines() if line.strip()):
            value = entry["value"]
            match entry["key"]:
                case "header":
                    title = value["summary"]
                case "file":
                    files[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
                case "lfsFile":
                    files[value["path"]] = Blob(self.blobs[value["oid"]], lfs=True)
                case "deletedFile":
                    del files[value["path"]]
                case "deletedFolder":
                    files = {path: blob for path, blob in files.items() if not path.startswith(value["path"])}
        if not pull:
            return repository.commit(branch, files, title), None
        number = 1 + sum(name.startswith("refs/pr/") for name in repository.branches)
        name = f"refs/pr/{number}"
        repository.branches[name] = repository.branches[branch]
        return repository.commit(name, files, title), name


def is_lfs(path: str, size: int) -> bool:
    """Whether the Hub stores a file in LFS: weights, images, and all large files."""
    return size > 10 * 2**20 or any(fnmatch.fnmatch(path, pattern) for pattern in LFS_PATTERNS)
