"""The shape of the code: import direction, sizes, and what it may say."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCE = ROOT / "src" / "hssl_hf"
MODULES = sorted(SOURCE.rglob("*.py"))
LEAVES = {"source", "masking", "positions", "schedules", "ema", "discrepancy", "tokens", "decode", "optim", "residual"}
LAYERS = [
    "views", "backbone", "masked", "auxiliary", "network", "objectives", "modeling_hssl", "modeling_mae", "modeling_siamese_im",
    "export", "convert", "study", "cli",
]  # fmt: skip


def imports(path: Path) -> set[str]:
    """First names below hssl_hf that a module imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hssl_hf."):
            names.add(node.module.split(".")[1])
    return names


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_leaves_import_nothing_of_ours(name):
    assert imports(SOURCE / f"{name}.py") == set()


def test_layers_import_only_downwards():
    for path in MODULES:
        own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if own in LAYERS:
            above = {layer for layer in LAYERS if LAYERS.index(layer) > LAYERS.index(own)}
            assert not imports(path) & above, path


def test_evaluation_knows_nothing_of_training():
    allowed = {"evaluate", "source", "decode", "discrepancy"}
    assert all(imports(path) <= allowed for path in (SOURCE / "evaluate").glob("*.py"))


def test_nothing_imports_the_training_folder():
    assert not [path for path in MODULES if re.search(r"^\s*(from|import) training", path.read_text(), re.M)]


def test_files_are_short_and_public_names_documented():
    for path in [*MODULES, *sorted((ROOT / "training").glob("*.py"))]:
        text = path.read_text()
        assert len(text.splitlines()) <= 310, path
        tree = ast.parse(text)
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}: {node.name}"


def test_every_module_has_a_test_of_its_name():
    tested = {path.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    untested = []
    for path in MODULES:
        own = path.relative_to(SOURCE)
        if own.name == "__init__.py":
            continue
        name = (own.parent / f"test_{own.name}").as_posix()
        if name not in tested and own.as_posix() not in COVERED:
            untested.append(own.as_posix())
    assert not untested


COVERED = {  # modules that are tested through their only user
    "auxiliary/combined.py": "test_network.py",
    "auxiliary/parallel.py": "test_network.py",
    **{
        f"auxiliary/{name}.py": "auxiliary/test_head.py"
        for name in ("convnext", "poolformer", "resmlp", "resnet", "swin", "vit")
    },
    "objectives/supervision.py": "objectives/test_dino.py",
    "loader.py": "test_pretrain.py",
    "student_teacher.py": "test_modeling_hssl.py",
    "commands.py": "test_cli.py",
    "convert/checkpoint.py": "convert/test_siamese_im.py",
    "configuration_pair.py": "test_network.py",
    "configuration_mae.py": "test_modeling_mae.py",
    "masked.py": "test_modeling_mae.py",
    "configuration_siamese_im.py": "test_modeling_siamese_im.py",
    "strict_yaml.py": "test_recipe.py",
    "stock.py": "test_export.py",
    "parity.py": "test_export.py",
    "configuration_head_search.py": "test_modeling_head_search.py",
    "native.py": "test_export.py",
    "wording.py": "test_card.py",
    "differences.py": "test_card.py",
    "outcome.py": "test_pretrain.py",
    "run_folder.py": "test_checkpoint.py",
    "tokens.py": "test_modeling_hssl.py",
    "colour_batch.py": "test_colour.py",
    "colour_cpu.py": "test_colour.py",
    "plan.py": "test_recipe.py",
    "probe.py": "test_cli.py",
    "evaluate/encoder.py": "test_export.py",
    "evaluate/features.py": "evaluate/test_knn.py",
    "evaluate/metrics.py": "evaluate/test_knn.py",
}


def test_no_file_in_git_is_large():
    files = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    assert sum((ROOT / name).stat().st_size for name in files if (ROOT / name).is_file()) < 10 * 2**20
