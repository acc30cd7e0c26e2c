"""The fast tests in environments of the oldest and of the newest releases that pyproject.toml allows."""

import os
import re
import subprocess
import tomllib
import venv

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RANGES = [Requirement(text) for text in PROJECT["dependencies"]]
RANGES += [Requirement(text) for extra in ("deepspeed", "onnx", "trackers") for text in PROJECT["optional-dependencies"][extra]]


def lowest(requirement: Requirement) -> str:
    (bound,) = (spec.version for spec in requirement.specifier if spec.operator == ">=")
    return f"{requirement.name}=={bound}"


@pytest.mark.parametrize("requirement", RANGES, ids=lambda requirement: requirement.name)
def test_every_dependency_has_two_bounds_around_the_version_that_make_installs(requirement):
    assert sorted(spec.operator for spec in requirement.specifier) == ["<", ">="]
    pinned = dict(line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    name = requirement.name.lower()
    version = pinned.get(name) or pinned.get(name.replace("-", "_"))
    assert version is None or requirement.specifier.contains(version)
    assert version is not None or name == "trackio", "make installs it"


@pytest.mark.slow
@pytest.mark.parametrize("bound", ["lowest", "newest"])
def test_fast_tests_pass_at_both_ends(tmp_path, bound):
    """Warnings of other releases are listed, they are not errors."""
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("\n".join(map(lowest, RANGES)) if bound == "lowest" else "")
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", str(constraints), "-e", f"{ROOT}[test]"], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    tests = [python, "-m", "pytest", "-q", "-o", "filterwarnings=default", "-p", "no:cacheprovider", str(ROOT / "tests")]
    done = subprocess.run(tests, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    print(bound, *sorted(set(re.findall(r"^\s+(.*Warning: .*)$", done.stdout, re.MULTILINE))), sep="\n")
    assert done.returncode == 0, done.stdout[-6000:]
