"""Scan for secrets: text files are searched before they are uploaded."""

import os
import re
from pathlib import Path

from huggingface_hub import get_token

from hssl_hf.errors import UserError

PATTERNS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{50,})\b",
    "an AWS access key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a URL with a password": r"://[^/\s:@]+:[^/\s:@]+@",
    "a signed URL": r"[?&](?:X-Amz-Signature|Signature|sig|token|access_token)=[^\s&]+",
}
NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY|CREDENTIAL", re.IGNORECASE)
TEXT = {".md", ".json", ".yaml"}


def refuse_secrets(files: dict[str, Path], token: str | None = None) -> None:
    """Raise a UserError, which does not repeat the secret, if a text file contains one.

    Args:
        files: to be uploaded, by their path inside the repository.
        token: searched for, as are the token of `hf auth login`, values of environment variables with names like secrets, and
            the path of the home folder.
    """
    values = {f"the value of {name}": value for name, value in os.environ.items() if NAMES.search(name) and len(value) >= 8}
    values |= {"a token": token or "", "the token of this machine": get_token() or "", "the home folder": str(Path.home())}
    texts = {name: path.read_text() for name, path in files.items() if path.suffix in TEXT}
    for name, text in texts.items():
        secrets = [kind for kind, pattern in PATTERNS.items() if re.search(pattern, text)]
        secrets += [kind for kind, value in values.items() if len(value) > 4 and value in text]
        if secrets:
            raise UserError(
                f"{name} contains {' and '.join(secrets)}, so nothing was uploaded; remove it from the recipe or the records"
            )
