"""Scan for secrets: all files, binary ones included, before they are uploaded, and messages before they are shown."""

import os
import re
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from huggingface_hub import get_token

from hssl_hf.errors import UserError

WORD = rb"[!-.0-9;-?A-~]"  # printable characters but / : @
PATTERNS = {  # kind -> texts of which one is in every secret of this kind, and its pattern
    "a Hugging Face token": ((b"hf_",), rb"\bhf_[A-Za-z0-9]{30,}\b"),
    "a GitHub token": ((b"gh", b"github_pat_"), rb"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{50,})\b"),
    "an AWS access key": ((b"AKIA", b"ASIA"), rb"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a private key": ((b"PRIVATE KEY-----",), rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a URL with a password": ((b"://",), rb"://" + WORD + rb"{1,1000}:" + WORD + rb"{1,1000}@"),
    "a signed URL": (
        (b"ignature=", b"sig=", b"token="),
        rb"[?&](?:X-Amz-Signature|Signature|sig|token|access_token)=[!-%'-~]{3,}",
    ),
}
NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY|CREDENTIAL", re.IGNORECASE)
CHUNK, OVERLAP = 2**22, 2**14  # bytes that are searched at once, and of the chunk before, in which a secret may begin


def refuse_secrets(files: dict[str, Path | bytes], token: str | None = None) -> None:
    """Raise a UserError, which does not repeat the secret, if a file contains one.

    Args:
        files: to be uploaded, or their content, by their path inside the repository.
        token: searched for, as are the token of `hf auth login`, values of environment variables with names like secrets, and
            the path of the home folder.
    """
    values = {kind: value for kind, value in _known_secrets(token).items() if len(value) > 4}
    for name, content in files.items():
        with BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
            kinds = _find(file, values)
        if kinds:
            raise UserError(
                f"{name} contains {' and '.join(kinds)}, so nothing was uploaded; remove it from the recipe, the records or "
                "the figures"
            )


def redact(text: str, token: str | None = None) -> str:
    """A text in which *** is in the place of tokens, keys and passwords, for messages."""
    content = text.encode(errors="replace")
    values = {kind: value for kind, value in _known_secrets(token).items() if len(value) >= 8 and kind != "the home folder"}
    for value in values.values():
        content = content.replace(value, b"***")
    for _, pattern in PATTERNS.values():
        content = re.sub(pattern, b"***", content)
    return content.decode(errors="replace")


def _known_secrets(token: str | None) -> dict[str, bytes]:
    values = {f"the value of {name}": value for name, value in os.environ.items() if NAMES.search(name) and len(value) >= 8}
    values |= {"a token": token or "", "the token of this machine": get_token() or "", "the home folder": str(Path.home())}
    return {kind: os.fsencode(value) for kind, value in values.items()}


def _find(file: BinaryIO, values: dict[str, bytes]) -> list[str]:
    """Kinds of secrets in a file."""
    kinds, before = set(), b""
    while chunk := file.read(CHUNK):
        text = before + chunk
        for kind, (parts, pattern) in PATTERNS.items():
            if kind not in kinds and any(part in text for part in parts) and re.search(pattern, text):
                kinds.add(kind)
        kinds |= {kind for kind, value in values.items() if value in text}
        before = text[-OVERLAP:]
    return sorted(kinds)
