"""No secrets leave this machine: text files are searched before they are uploaded."""

import os
import re
from pathlib import Path

from huggingface_hub import get_token

from hssl_hf.errors import UserError

PATTERNS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{50,})\b",
    "an access key of AWS": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"://[^/\s:@]+:[^/\s:@]+@",
    "a signed address": r"[?&](?:X-Amz-Signature|Signature|sig|token|access_token)=[^\s&]+",
}
NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY|CREDENTIAL", re.IGNORECASE)
TEXT = {".md", ".json", ".yaml"}


def refuse_secrets(files: dict[str, Path], token: str | None = None) -> None:
    """Raise a ValueError, which does not repeat the secret, if a text file holds one.

    Args:
        files: to be uploaded, by their path inside the repository.
        token: searched for, as are the one of `hf auth login`, values of variables of the environment that are named like
            secrets, and the name of the home folder.
    """
    own = {f"the value of {name}": value for name, value in os.environ.items() if NAMES.search(name) and len(value) >= 8}
    own |= {"a token": token or "", "the token of this machine": get_token() or "", "the home folder": str(Path.home())}
    for name, path in files.items():
        if path.suffix not in TEXT:
            continue
        text = path.read_text()
        found = [what for what, pattern in PATTERNS.items() if re.search(pattern, text)]
        found += [what for what, value in own.items() if len(value) > 4 and value in text]
        if found:
            raise UserError(
                f"{name} holds {' and '.join(found)}, so nothing was uploaded; take it out of the recipe or the records"
            )
