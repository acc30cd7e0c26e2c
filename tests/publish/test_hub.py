"""To the Hub and back, with a server on localhost: nothing is lost or visible in part, and no token is written."""

import os
import shutil
import subprocess
import sys
import threading
from inspect import signature
from pathlib import Path

import pytest
import torch
from huggingface_hub import CommitInfo, HfApi
from transformers.utils import PushToHubMixin

from hssl_hf import HSSLForPreTraining
from hssl_hf.publish import hub as hub_module
from hssl_hf.publish import parity
from hssl_hf.publish.export import CardContext
from hssl_hf.publish.hub import PushError, push, push_model, stage, staged_files
from hssl_hf.publish.kinds import KINDS, branch
from tests.conftest import TINY_VIT, tiny_model
from tests.faults import refused
from tests.hub_server.server import OTHER_TOKEN, READ_TOKEN, TOKEN, Fault, HubServer
from tests.hub_server.store import Blob


def contents(server: HubServer, revision: str) -> dict[str, bytes]:
    repository = server.repository("user/name")
    return {path: blob.content for path, blob in repository.at(revision).files.items()}


def expected(staged: Path, kind: str) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in staged_files(staged / kind).items()}


def is_complete(server: HubServer, staged: Path, revision: str = "main") -> bool:
    return all(contents(server, branch(revision, kind)) == expected(staged, kind) for kind in KINDS)


def test_each_branch_changes_by_one_commit(hub, staged):
    done = push(staged, "user/name", token=TOKEN, private=True)
    assert is_complete(hub, staged) and hub.repository("user/name").private
    assert set(done) == set(KINDS) and all(hub.url in address for address in done.values())
    titles = [commit.title for commit in hub.repository("user/name").history("main")]
    assert titles == ["Upload a pre-trained backbone", "initial commit"]
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "facts.yaml"} == set(
        contents(hub, "main")
    )
    push(staged, "user/name", token=TOKEN)
    assert len(hub.repository("user/name").commits) == 1 + len(KINDS), "an identical push changes nothing"


def test_push_to_hub_of_a_model(hub, monkeypatch):
    monkeypatch.setattr(parity, "compare", lambda *_: {})
    texts = {"commit_message": "mine", "commit_description": "more about it"}
    done = tiny_model().push_to_hub("user/name", token=TOKEN, private=True, license="mit", tags=["cells", "sar"], **texts)
    assert isinstance(done, CommitInfo) and done.repo_url.repo_id == "user/name"
    repository = hub.repository("user/name")
    assert done.oid == HfApi(token=TOKEN).model_info("user/name").sha and repository.private
    card = contents(hub, "main")["README.md"]
    assert b"license: mit" in card and b"- cells\n- sar\n" in card and b"auxiliary" not in contents(hub, "main")["config.json"]
    assert {commit.title for commit in repository.history("timm")} == {"mine", "initial commit"}
    assert (done.commit_message, done.commit_description) == ("mine", "more about it")


def test_push_to_hub_takes_the_arguments_of_transformers(hub, monkeypatch, tmp_path):
    """Each of them, and shards are uploaded and loaded."""
    monkeypatch.setattr(parity, "compare", lambda *_: {})
    theirs = signature(PushToHubMixin.push_to_hub).parameters
    assert set(theirs) <= set(signature(HSSLForPreTraining.push_to_hub).parameters)
    model = tiny_model()
    done = model.push_to_hub("user/name", token=TOKEN, revision="v2", create_pr=True, max_shard_size="100KB")
    assert done.pr_url and done.pr_revision and contents(hub, "main") == {} == contents(hub, "v2")
    files = contents(hub, done.pr_revision)
    assert "model.safetensors.index.json" in files and "model.safetensors" not in files
    for name, content in contents(hub, "refs/pr/1").items():
        (tmp_path / name).write_bytes(content)
    loaded = HSSLForPreTraining.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_changes_after_the_scan_are_not_uploaded(hub, staged, tmp_path):
    """A secret is written into the staged folder during the push."""
    folder = tmp_path / "push"
    shutil.copytree(staged, folder)
    before = expected(staged, "main")["README.md"]

    def write():
        for kind in KINDS:
            (folder / kind / "README.md").write_text(f"token: {TOKEN}")
        return False

    hub.faults.append(Fault("POST", "/repos/create", write))
    push(folder, "user/name", token=TOKEN)
    assert contents(hub, "main")["README.md"] == before
    assert not [path for path in folder.iterdir() if path.name.startswith(".upload-")]


def test_only_architectures_with_feature_maps_in_transformers_have_that_branch(hub, tmp_path, unchecked):
    """Nor does a folder of an earlier push remain."""
    model = tiny_model(backbone_kwargs={**TINY_VIT, "reg_tokens": 2}, objective="dino")
    (tmp_path / "backbone").mkdir()
    folder = stage(model, tmp_path, context=CardContext(repository="user/name"))
    assert set(push(folder, "user/name", token=TOKEN)) == set(KINDS) - {"backbone"}
    assert "backbone" not in hub.repository("user/name").branches


def test_push_to_another_branch_does_not_change_main(hub, staged):
    push(staged, "user/name", token=TOKEN, revision="v2")
    assert is_complete(hub, staged, "v2") and contents(hub, "main") == {}
    assert set(hub.repository("user/name").branches) == {"main", "v2", "v2-backbone", "v2-timm", "v2-training"}


def test_pull_requests_do_not_change_the_branches(hub, staged):
    done = push(staged, "user/name", token=TOKEN, create_pr=True)
    assert all("/discussions/" in commit.pr_url for commit in done.values()) and contents(hub, "main") == {}
    assert contents(hub, "refs/pr/4") == expected(staged, "main")


@pytest.mark.parametrize("act", [429, 500, 503, "drop"])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/commit/main"), ("PUT", "/_lfs/"), ("POST", "/preupload/"), ("GET", "/revision/")]
)
def test_transient_errors_are_retried(hub, staged, method, path, act):
    hub.faults.append(Fault(method, path, act, times=2))
    push(staged, "user/name", token=TOKEN)
    assert is_complete(hub, staged)


def test_lost_connection_is_reported(hub, staged):
    hub.faults.append(Fault("POST", "/repos/create", "drop", times=100))
    with pytest.raises(PushError, match="the Hub could not be reached or refused"):
        push(staged, "user/name", token=TOKEN)


def test_failed_push_is_not_visible_and_the_next_one_uploads_only_the_rest(hub, staged):
    """The connection is lost just before the commit to main, the last request."""
    hub.faults.append(Fault("POST", "/commit/main", 500, times=100))
    with pytest.raises(PushError, match="Push again: uploaded files are kept, and main"):
        push(staged, "user/name", token=TOKEN)
    assert contents(hub, "main") == {} and contents(hub, "timm") == expected(staged, "timm")
    sent = hub.count("PUT", "/_lfs/")
    hub.faults.clear()
    push(staged, "user/name", token=TOKEN)
    assert is_complete(hub, staged) and hub.count("PUT", "/_lfs/") == sent, "no weights are uploaded twice"


def test_killed_push_is_not_visible(hub, staged):
    """SIGKILL at the commit to main, after the upload of its weights."""
    code = "from pathlib import Path; from hssl_hf.publish.hub import push; "
    code += f"push(Path({str(staged)!r}), 'user/name', token={TOKEN!r})"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    hub.faults.append(Fault("POST", "/commit/main", lambda: process.kill() or True))
    assert process.wait() < 0
    assert contents(hub, "main") == {}
    sent = hub.count("PUT", "/_lfs/")
    push(staged, "user/name", token=TOKEN)
    assert is_complete(hub, staged) and hub.count("PUT", "/_lfs/") == sent


@pytest.mark.parametrize(("moment", "changed"), [("timm", "timm"), ("main", "training")])
def test_push_starts_over_after_a_concurrent_push(hub, staged, moment, changed):
    """Another commit to a branch after this push has read its head, or after its own commit there."""

    def interfere():
        hub.repository("user/name").commit(changed, {"theirs.md": Blob(b"theirs", lfs=False)}, "another user")

    hub.faults.append(Fault("POST", f"/commit/{moment}", interfere))
    push(staged, "user/name", token=TOKEN)
    assert is_complete(hub, staged)
    assert "another user" in [commit.title for commit in hub.repository("user/name").history(changed)]


def test_files_of_an_earlier_push_are_deleted(hub, staged):
    HfApi(token=TOKEN).create_repo("user/name")
    old = {"figures/views.png": Blob(b"old", lfs=True), ".gitattributes": Blob(b"", lfs=False)}
    hub.repository("user/name").commit("main", old, "earlier")
    push(staged, "user/name", token=TOKEN)
    assert set(contents(hub, "main")) == {*expected(staged, "main"), ".gitattributes"}


def test_concurrent_pushes_end_with_all_branches_of_one(hub, staged, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_module, "FIRST_PAUSE", 0.05)  # of random length, so that one of them comes through
    patch = pytest.MonkeyPatch()
    patch.setattr(parity, "compare", lambda *_, **__: {})
    other = stage(tiny_model(), tmp_path / "push", context=CardContext(repository="user/name"))
    patch.undo()
    failures = []

    def run(folder: Path):
        try:
            push(folder, "user/name", token=TOKEN)
        except PushError as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(folder,)) for folder in (staged, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failures) < 2 and (is_complete(hub, staged) or is_complete(hub, other))


@pytest.mark.parametrize(
    ("token", "repository", "message"),
    [
        ("hf_" + "x" * 34, "user/name", "not logged in to the Hub"),
        (READ_TOKEN, "user/name", "this token may not write to 'user/name'"),
        (OTHER_TOKEN, "user/name", "this token may not write to 'user/name'"),
        (TOKEN, "user/na me", "expected a repository of the form user/name, got"),
        (TOKEN, "../../etc/passwd", "expected a repository of the form user/name, got"),
    ],
)
def test_errors_state_what_to_do(hub, staged, token, repository, message):
    with pytest.raises(PushError, match=message) as raised:
        push(staged, repository, token=token)
    assert token not in str(raised.value)
    assert not hub.store.repositories


def test_other_files_are_not_uploaded(hub, staged):
    (staged / "main" / "notes.txt").write_text("private")
    (staged / "main" / "optimizer.bin").write_bytes(b"0")
    push(staged, "user/name", token=TOKEN)
    assert not {"notes.txt", "optimizer.bin"} & set(contents(hub, "main"))


def test_secret_stops_the_push_before_any_request(hub, staged, monkeypatch):
    facts = staged / "timm" / "facts.yaml"
    before = facts.read_text()
    facts.write_text(before + f"\nnote: {TOKEN}\n")
    try:
        with pytest.raises(ValueError, match=r"facts\.yaml contains a Hugging Face token") as raised:
            push(staged, "user/name", token=TOKEN)
        assert TOKEN not in str(raised.value) and not hub.requests
    finally:
        facts.write_text(before)


def test_a_dry_run_uploads_nothing(hub, staged):
    assert push(staged, "user/name", token=TOKEN, dry_run=True) == {} and not hub.requests


@pytest.mark.fault("names that the Hub refuses")
@pytest.mark.parametrize(
    "change", [{"revision": "a b"}, {"token": f"{TOKEN}\n"}, {"license": "Apache 2.0"}, {"repository": "x y"}]
)
def test_a_model_is_not_staged_for_what_the_hub_would_refuse(monkeypatch, change):
    monkeypatch.setattr("hssl_hf.publish.hub.stage", lambda *_, **__: pytest.fail("work was done"))
    with refused("expected") as _:
        push_model(None, **{"repository": "user/name", "token": TOKEN, **change})


@pytest.mark.fault("folders that hold no run")
def test_a_folder_without_staged_exports(hub, tmp_path):
    with refused("holds no staged export"):
        push(tmp_path, "user/name", token=TOKEN)
