import pytest

from hssl_hf.publish.secret_scan import refuse_secrets

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
    (tmp_path / "model.safetensors").write_bytes(b"hf_" + FAKE.encode())
    refuse_secrets({name: tmp_path / name for name in ("README.md", "model.safetensors")})
