"""What the Hub would refuse is refused before any work, by a dry run too, and no message repeats a token."""

import pytest

from hssl_hf.cli import main as cli
from hssl_hf.publish import push_checks
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
