import random

import pytest

from hssl_hf.publish.secret_scan import CHUNK, redact, refuse_secrets
from tests.faults import refused

FAKE = "A1b2C3d4" * 5


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (f"token: hf_{FAKE}", "a Hugging Face token"),
        (f"x ghp_{FAKE}", "a GitHub token"),
        ("AKIAABCDEFGHIJKLMNOP", "an AWS access key"),
        ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("path: https://alice:word@host/x.tar", "a URL with a password"),
        ("https://host/x.tar?X-Amz-Signature=abc", "a signed URL"),
        ("it is swordfish-9", "the value of MY_SECRET"),
        ("/users/home/images", "the home folder"),
    ],
)
def test_secrets_are_refused_without_repeating_them(text, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SECRET", "swordfish-9")
    monkeypatch.setenv("HOME", "/users/home")
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(ValueError, match=f"README.md contains {kind}") as raised:
        refuse_secrets({"README.md": tmp_path / "README.md"})
    assert FAKE not in str(raised.value) and "swordfish" not in str(raised.value)


def test_ordinary_text_passes(tmp_path):
    (tmp_path / "README.md").write_text("see https://arxiv.org/abs/2310.05108?context=cs and user@host, commit " + "ab" * 20)
    (tmp_path / "model.safetensors").write_bytes(random.Random(0).randbytes(2**23))
    refuse_secrets({name: tmp_path / name for name in ("README.md", "model.safetensors")})


@pytest.mark.fault("secrets")
@pytest.mark.parametrize("name", ["model.safetensors", "onnx/model.onnx", "figures/views.png", "onnx/model.onnx.data"])
@pytest.mark.parametrize("position", [0, CHUNK - 20, CHUNK + 1])
def test_binary_files_are_searched_across_the_pieces_in_which_they_are_read(name, position, tmp_path):
    (tmp_path / "file").write_bytes(b"\0" * position + f"\0hf_{FAKE}\0".encode() + b"\0" * 100)
    with refused(f"{name} contains a Hugging Face token"):
        refuse_secrets({name: tmp_path / "file"})


@pytest.mark.fault("secrets")
@pytest.mark.parametrize(
    "text", [f"hf_{FAKE}", f"Bearer hf_{FAKE}\\n", "https://alice:word@host/x", "it is swordfish-9", "caf\udce9"]
)
def test_messages_show_no_secret(text, monkeypatch):
    monkeypatch.setenv("MY_SECRET", "swordfish-9")
    shown = redact(f"refused: {text}, see above")
    assert FAKE not in shown and "word" not in shown and shown.startswith("refused: ") and shown.endswith(", see above")
