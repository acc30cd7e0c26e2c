"""Where the code departs from a paper: every `Differs:` of a docstring, with the place it stands at."""

import ast
import re
from pathlib import Path

SOURCE = Path(__file__).parent


def differences(config: dict | None = None) -> list[tuple[str, str, str]]:
    """(file, name, difference), of all the code or of what a configuration uses.

    Args:
        config: of a model, as a dictionary.
    """
    files = sorted(SOURCE.rglob("*.py")) if config is None else [SOURCE / f"{name}.py" for name in _used(config)]
    found = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                texts = re.findall(r"Differs: (.*?)(?=\n\S|\n\n|\Z)", ast.get_docstring(node) or "", re.DOTALL)
                found += [(path.relative_to(SOURCE).as_posix(), node.name, " ".join(text.split())) for text in texts]
    return found


def _used(config: dict) -> list[str]:
    """Files whose differences a card of this configuration tells."""
    if config["model_type"] == "siamese_im":
        return ["configuration_siamese_im", "modeling_siamese_im", "objectives/unigrad", "positions", "masking", "optim"]
    families = config.get("candidates") or config.get("auxiliary") or []
    families = [families] if isinstance(families, str) else families
    head = ["auxiliary/head", *(f"auxiliary/{family}" for family in families)] if families else []
    if config.get("auxiliary_connection") == "parallel":
        head = ["auxiliary/parallel"]
    if config["model_type"] == "mae":
        return ["configuration_mae", *head, "objectives/mae", "optim"]
    masks = ["masking"] if config.get("patch_supervision") else []
    return ["configuration_hssl", *head, f"objectives/{config['objective']}", *masks, "optim"]
