"""What the Hub would refuse is refused before any work, by a dry run too, and no message repeats a token."""

import json
import shutil

import pytest

from hssl_hf.cli import main as cli
from hssl_hf.publish import push_checks
from hssl_hf.publish.hub import push
from hssl_hf.publish.push_checks import check_push
from tests.faults import refused

TOKEN = "hf_" + "a" * 34
GOOD = {"repository": "user/name", "revision": "main", "token": TOKEN, "license": None, "commit_message": "title"}
BAD = [
    *(
        ({"repository": name}, "user/name")
        for name in (
            "",
            "name",
            "a/b/c",
            "user/na me",
            "../etc",
            "user/-x",
            "user/x..y",
            "/x",
            "user/",
            "user/" + "x" * 120,
            "user/x.git",
            "datasets/user/name",
            "user/nämé",
            "user/x\n",
            None,
        )
    ),
    *(
        ({"revision": name}, "branch")
        for name in (
            "",
            " ",
            "a b",
            "-x",
            "a..b",
            "a//b",
            "x/",
            "x.lock",
            "a~1",
            "x:y",
            "é",
            "refs/pr/1",
            "v" * 300,
            "0" * 40,
            "timm",
            "training",
            "v2-backbone",
            "x@{1}",
            "x\n",
            None,
        )
    ),
    *(({"license": name}, "license") for name in ("Apache 2.0", "MIT", "", "a" * 99, "mit\nlanguage: x", "<b>")),
    *(({"commit_message": text}, "title") for text in ("", "  ")),
    *(
        ({"token": text}, "token")
        for text in ("secret", f"{TOKEN}\n", f"Bearer {TOKEN}", "hf_é" + "a" * 30, "hf_12", TOKEN + " x", "\x7f" * 20)
    ),
]


@pytest.mark.fault("names that the Hub refuses")
@pytest.mark.parametrize(("change", "word"), BAD)
def test_what_the_hub_would_refuse(change, word):
    with refused(word):
        check_push(**{**GOOD, **change})
    if "token" in change:
        with pytest.raises(push_checks.PushError) as raised:
            check_push(**{**GOOD, **change})
        assert change["token"] not in str(raised.value)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"revision": "v2"},
        {"revision": "feature/a.b_c-1"},
        {"license": "cc-by-nc-sa-4.0"},
        {"repository": "org-1/a.b_c"},
        {"token": "eyJhbGciOi.eyJz-dWIi.c_2ln"},
    ],
)
def test_what_the_hub_takes(change):
    check_push(**{**GOOD, **change})


@pytest.mark.fault("names that the Hub refuses")
@pytest.mark.parametrize("value", [None, True])
def test_without_a_token(value, monkeypatch, caplog):
    monkeypatch.setattr(push_checks, "get_token", lambda: None)
    with refused("not logged in"):
        check_push(**{**GOOD, "token": value})
    with refused("not logged in"):
        check_push(**{**GOOD, "token": False})
    check_push(**{**GOOD, "token": value}, dry_run=True)
    assert "a push would be refused: not logged in" in caplog.text


@pytest.mark.fault("names that the Hub refuses")
@pytest.mark.parametrize(
    "arguments", [["user/na me"], ["user/name", "--revision", "a b"], ["user/name", "--license", "Apache 2.0"]]
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_the_command_checks_before_it_opens_the_run(arguments, dry, capsys):
    assert cli.main(["push", "no-run", *arguments, "--token", TOKEN, *dry]) == 2
    assert "expected" in (error := capsys.readouterr().err) and "checkpoint" not in error and TOKEN not in error


@pytest.fixture
def copied(staged, tmp_path):
    """A copy of the staged folder, to be spoiled."""
    shutil.copytree(staged, tmp_path / "push")
    return tmp_path / "push"


@pytest.mark.fault("links in a run")
@pytest.mark.parametrize("spoiled", ["main/curves.png", "main/README.md", "timm/model.safetensors", "main/figures", "training"])
@pytest.mark.parametrize("dry_run", [True, False])
def test_links_are_not_uploaded(hub, copied, tmp_path, spoiled, dry_run):
    private = tmp_path / "private"
    private.mkdir()
    (private / "views.png").write_bytes(b"private")
    path = copied / spoiled
    if path.is_dir() and not path.is_symlink():
        path.rename(private / "moved")
    path.unlink(missing_ok=True)
    path.symlink_to({"main/figures": private, "training": private / "moved"}.get(spoiled, private / "views.png"))
    with refused(spoiled, "link"):
        push(copied, "user/name", token=TOKEN, dry_run=dry_run)
    assert not hub.requests


@pytest.mark.fault("files of other formats")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("main/curves.png", b"-----BEGIN"),
        ("main/config.json", b"{"),
        ("timm/model.safetensors", b"PK"),
        ("main/README.md", b"\xff"),
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_files_that_are_not_what_their_names_promise(hub, copied, name, content, dry_run):
    (copied / name).write_bytes(content)
    with refused(name.partition("/")[2], "file"):
        push(str(copied), "user/name", token=TOKEN, dry_run=dry_run)
    assert not hub.requests


@pytest.mark.fault("secrets")
def test_a_secret_in_weights_stops_a_dry_run_too(hub, copied):
    path = copied / "main" / "model.safetensors"
    header = json.dumps({"__metadata__": {"note": TOKEN}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    for dry_run in (True, False):
        with refused("model.safetensors contains a Hugging Face token"):
            push(copied, "user/name", token=TOKEN, dry_run=dry_run)
    assert not hub.requests
