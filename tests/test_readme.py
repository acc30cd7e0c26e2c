import re
import subprocess

import pytest

from model_cards import readme
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_generated_parts_are_up_to_date():
    """If this fails: python model_cards/readme.py."""
    assert readme.render(README) == README
    assert "equations 1 and 2 add the terms" in README, "differences are collected"


def test_links_resolve():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert len(links) > 15 and all((ROOT / link).exists() for link in links)


@pytest.mark.parametrize("target", ["quickstart", "test"])
def test_commands_exist(target):
    assert f"make {target}" in README
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_python_of_the_readme_runs(monkeypatch):
    """The block about training builds a model; the block about use names functions that exist."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2 and len(blocks[0].strip().splitlines()) <= 6
    scope = {}
    exec(blocks[1].replace('backbone="vit_small', 'backbone_kwargs={"depth": 1}, backbone="vit_small'), scope)
    assert scope["model"].config.auxiliary == "convnext" and scope["siamese"].config.target == "feature"


def test_every_folder_is_linked():
    folders = {path.parent.name for path in (ROOT / "src" / "hssl_hf").glob("*/__init__.py")}
    assert all(f"[{name}](src/hssl_hf/{name}/__init__.py)" in README for name in folders)
