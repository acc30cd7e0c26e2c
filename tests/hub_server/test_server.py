"""The server with the real client: the behavior that other tests rely on."""

from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hssl_hf.publish.hub import httpx
from tests.hub_server.server import OTHER_TOKEN, READ_TOKEN, TOKEN, Fault, HubServer

LARGE = bytes(range(256)) * 12_000  # three parts


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with HubServer() as server:
        yield server


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.url, token=TOKEN)


def add(**files: bytes) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(name.replace("__", "/").replace("_dot_", "."), content) for name, content in files.items()]


def test_downloads_equal_uploads(api, hub, tmp_path):
    assert api.whoami()["name"] == "user"
    api.create_repo("user/name")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("user/name")
    api.create_repo("user/name", exist_ok=True)
    created = api.create_commit("user/name", add(README_dot_md=b"text", sub__model_dot_safetensors=LARGE), commit_message="one")
    assert api.list_repo_files("user/name") == ["README.md", "sub/model.safetensors"]
    path = api.hf_hub_download("user/name", "sub/model.safetensors", cache_dir=tmp_path)
    assert Path(path).read_bytes() == LARGE and hub.count("PUT", "_lfs") == 3
    assert api.model_info("user/name").sha == created.oid == api.list_repo_commits("user/name")[0].commit_id
    api.create_commit("user/name", add(again_dot_safetensors=LARGE), commit_message="the same content is not sent again")
    assert hub.count("PUT", "_lfs") == 3
    api.delete_file("README.md", "user/name")
    assert api.list_repo_files("user/name") == ["again.safetensors", "sub/model.safetensors"]
    assert api.list_repo_files("user/name", revision=created.oid) == ["README.md", "sub/model.safetensors"]


def test_branches_and_pull_requests_do_not_change_main(api, hub):
    api.create_repo("user/name")
    api.create_branch("user/name", branch="timm")
    api.create_commit("user/name", add(a=b"1"), commit_message="m", revision="timm")
    pull = api.create_commit("user/name", add(b=b"2"), commit_message="m", create_pr=True)
    assert pull.pr_revision == "refs/pr/1" and api.list_repo_files("user/name") == []
    assert api.list_repo_files("user/name", revision="timm") == ["a"]
    assert api.list_repo_files("user/name", revision="refs/pr/1") == ["b"]
    assert {ref.name for ref in api.list_repo_refs("user/name").branches} == {"main", "timm"}


def test_stale_parent_is_refused(api, hub):
    api.create_repo("user/name")
    head = api.model_info("user/name").sha
    api.create_commit("user/name", add(a=b"1"), commit_message="m", parent_commit=head)
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit("user/name", add(a=b"2"), commit_message="m", parent_commit=head)


def test_access_rights(api, hub):
    api.create_repo("user/name", private=True)
    api.create_commit("user/name", add(a=b"1"), commit_message="m")
    for token in (False, OTHER_TOKEN):
        with pytest.raises(RepositoryNotFoundError):
            HfApi(endpoint=hub.url, token=token).model_info("user/name")
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        HfApi(endpoint=hub.url, token="hf_wrong").model_info("user/name")
    read_only = HfApi(endpoint=hub.url, token=READ_TOKEN)
    assert read_only.list_repo_files("user/name") == ["a"]
    with pytest.raises(HfHubHTTPError, match="403"):
        read_only.create_commit("user/name", add(b=b"1"), commit_message="m")
    hub.repository("user/name").private, hub.repository("user/name").gated = False, True
    with pytest.raises(GatedRepoError):
        HfApi(endpoint=hub.url, token=OTHER_TOKEN).hf_hub_download("user/name", "a")
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download("user/name", "b")
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download("user/name", "a", revision="missing")


@pytest.mark.parametrize("act", [429, 500, "drop"])
def test_faults_happen_once_by_default(api, hub, act):
    api.create_repo("user/name")
    hub.faults.append(Fault("GET", "/api/models/user/name", act))
    with pytest.raises((HfHubHTTPError, httpx.TransportError)):
        HfApi(endpoint=hub.url, token=TOKEN).model_info("user/name", timeout=5)
    assert api.model_info("user/name").id == "user/name"
