"""The shape of the code: which folder may import which, sizes, and a test for every module."""

import ast
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCE = ROOT / "src" / "hssl_hf"
MODULES = sorted(SOURCE.rglob("*.py"))
EVERYTHING_BELOW = ...
MAY_IMPORT = {  # in an order in which no folder imports one that comes later
    "errors.py": (),
    "fields.py": (),
    "data": (),
    "modules": (),
    "engine": ("modules",),
    "auxiliary": ("modules",),
    "objectives": ("modules",),
    "publish": ("modules", "data"),
    "models": ("auxiliary", "objectives", "modules", "publish"),
    "convert": ("models", "publish", "modules"),
    "evaluation": ("data", "engine", "objectives"),
    "visualization": ("data", "evaluation"),
    "config": ("data", "evaluation", "models"),
    "runs": ("config", "engine", "publish", "visualization", "evaluation", "data"),
    "pretraining": EVERYTHING_BELOW,
    "experiments": EVERYTHING_BELOW,
    "cli": EVERYTHING_BELOW,
}
FOLDERS = list(MAY_IMPORT)
FOUNDATION = ("errors.py", "fields.py")  # which every folder may import


def entry_of(path: Path) -> str:
    """Folder of the package that holds a module, or the module's own name for a loose file."""
    return path.relative_to(SOURCE).parts[0]


def nodes_at_run_time(tree: ast.AST):
    """All nodes but those below `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from nodes_at_run_time(node)


@cache
def imported_modules(path: Path) -> frozenset[str]:
    """Modules of this package that a module imports, also inside of functions, as dotted names below `hssl_hf`."""
    names = set()
    for node in nodes_at_run_time(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hssl_hf."):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "hssl_hf":
            names |= {"hssl_hf.models.auto"}  # through which public names are reached
        elif isinstance(node, ast.Import):
            names |= {"hssl_hf.models.auto" if alias.name == "hssl_hf" else alias.name for alias in node.names}
    return frozenset(name.removeprefix("hssl_hf.") for name in names if name.startswith("hssl_hf."))


def imported_entries(path: Path) -> set[str]:
    names = {name.split(".")[0] for name in imported_modules(path)}
    return {f"{name}.py" if (SOURCE / f"{name}.py").is_file() else name for name in names} & set(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_what_its_row_of_the_table_allows(folder):
    allowed = FOLDERS[: FOLDERS.index(folder)] if MAY_IMPORT[folder] is EVERYTHING_BELOW else MAY_IMPORT[folder]
    for path in MODULES:
        if entry_of(path) == folder:
            assert imported_entries(path) <= {folder, *FOUNDATION, *allowed}, path


def test_every_folder_and_loose_file_is_in_the_table():
    assert {entry_of(path) for path in MODULES} - {"__init__.py", "__main__.py"} == set(FOLDERS)
    entries = {path.name for path in SOURCE.iterdir()} - {"__pycache__"}
    assert len(entries) <= 20, sorted(entries)


def test_levels_of_folders_are_few():
    """A folder is one level above the highest that it imports, the lowest above the foundation."""
    levels: dict[str, int] = {}
    for folder in FOLDERS:
        below = set().union(*(imported_entries(path) for path in MODULES if entry_of(path) == folder)) - {folder, *FOUNDATION}
        levels[folder] = 1 + max((levels[other] for other in below), default=0)
    assert max(levels.values()) <= 9, levels


def test_modules_import_each_other_in_no_circle():
    files = {path.relative_to(SOURCE).with_suffix("").as_posix().replace("/", "."): path for path in MODULES}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}

    def targets(name: str) -> set[str]:
        imported = {n if n in files else n.rpartition(".")[0] for n in imported_modules(files[name])}
        return {other for other in imported if other in files and other not in (name, "__init__")}

    done, active = set(), []

    def visit(name: str) -> None:
        assert name not in active, " -> ".join([*active[active.index(name) :], name])
        if name not in done:
            active.append(name)
            for other in sorted(targets(name)):
                visit(other)
            done.add(active.pop())

    for name in sorted(files):
        visit(name)


def test_nothing_imports_the_folders_beside_the_package():
    for path in MODULES:
        tree = ast.parse(path.read_text())
        modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        assert not {"training", "model_cards", "tests"} & {name.split(".")[0] for name in modules}, path


@pytest.mark.parametrize("path", sorted((SOURCE / "models").glob("configuration_*.py")), ids=lambda path: path.stem)
def test_configurations_need_neither_torch_nor_models(path):
    nodes = [node for node in nodes_at_run_time(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in nodes for alias in node.names} | {getattr(node, "module", None) or "" for node in nodes}
    assert not {name for name in names if name.split(".")[0] in ("torch", "timm") or "modeling" in name}


def test_files_are_short_and_public_names_documented():
    for path in [*MODULES, *sorted((ROOT / "training").rglob("*.py"))]:
        text = path.read_text()
        assert len(text.splitlines()) <= 310, path
        tree = ast.parse(text)
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}: {node.name}"


@pytest.mark.parametrize("path", sorted((ROOT / "training").glob("*.py")), ids=lambda path: path.name)
def test_launchers_are_thin(path):
    assert len(path.read_text().splitlines()) <= 60


def test_tests_import_what_they_test():
    """No script is loaded by its path, and no private part of the trainer is called from outside."""
    for path in [*sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "training").rglob("*.py"))]:
        if path.name != "test_architecture.py":
            text = path.read_text()
            assert "spec_from_file_location" not in text and "sys.path" not in text and "trainer._" not in text, path


def test_every_module_has_a_test_of_its_name():
    tested = {path.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    own = [path.relative_to(SOURCE) for path in MODULES if not path.name.startswith("__")]
    names = {path.as_posix(): (path.parent / f"test_{path.name}").as_posix() for path in own}
    untested = {path for path, name in names.items() if name not in tested}
    assert untested == set(TESTED_THROUGH)
    assert set(TESTED_THROUGH.values()) <= tested


TESTED_THROUGH = {  # modules that are tested through their only user
    **{f"auxiliary/{name}.py": "auxiliary/test_head.py" for name in ("convnext", "resmlp", "resnet", "swin", "vit")},
    "cli/commands.py": "cli/test_main.py",
    "cli/programs.py": "pretraining/test_trainer.py",
    "convert/state_dict.py": "convert/test_siamese_im.py",
    "data/color_opencv.py": "data/test_color.py",
    "data/color_torch.py": "data/test_color.py",
    "data/errors.py": "data/test_source.py",
    "data/local_dataset.py": "data/test_image_folder.py",
    "data/plain_paths.py": "data/test_local_source.py",
    "data/remote.py": "data/test_source.py",
    "cli/console.py": "cli/test_main.py",
    "errors.py": "cli/test_main.py",
    "evaluation/encoder_contract.py": "evaluation/test_encoder.py",
    "data/shard_reader.py": "data/test_stream.py",
    "evaluation/augmented_features.py": "evaluation/test_linear_probe.py",
    "evaluation/load_report.py": "evaluation/test_encoder.py",
    "evaluation/probe.py": "evaluation/test_knn.py",
    "evaluation/probe_state.py": "evaluation/test_linear_probe.py",
    "evaluation/splits.py": "evaluation/test_labels.py",
    "evaluation/tensor_file.py": "evaluation/test_feature_cache.py",
    "experiments/complementarity.py": "evaluation/test_complementarity.py",
    "visualization/comparison.py": "experiments/test_comparison.py",
    "experiments/study_runner.py": "experiments/test_study.py",
    "models/configuration_head_search.py": "models/test_modeling_head_search.py",
    "models/configuration_mae.py": "models/test_modeling_mae.py",
    "models/configuration_siamese_im.py": "models/test_modeling_siamese_im.py",
    "models/configuration_two_branch.py": "models/test_modeling_two_branch.py",
    "models/modeling_student_teacher.py": "models/test_modeling_hssl.py",
    "modules/tokens.py": "models/test_modeling_hssl.py",
    "modules/visible_patches.py": "models/test_modeling_mae.py",
    "objectives/supervision.py": "objectives/test_dino.py",
    "pretraining/artifacts.py": "pretraining/test_trainer.py",
    "pretraining/training_schedule.py": "config/test_recipe.py",
    "publish/card_text.py": "publish/test_model_card.py",
    "publish/citations.py": "publish/test_model_card.py",
    "publish/image_processor.py": "publish/test_export.py",
    "publish/kinds.py": "publish/test_model_card.py",
    "publish/paper_differences.py": "publish/test_model_card.py",
    "publish/parity.py": "publish/test_export.py",
    "publish/redaction.py": "runs/test_manifest.py",
    "publish/timm_wrapper.py": "publish/test_export.py",
    "runs/run_directory.py": "engine/test_checkpoint.py",
    "visualization/curves.py": "runs/test_metric_logger.py",
}


def test_no_file_in_git_is_large():
    files = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    assert sum((ROOT / name).stat().st_size for name in files if (ROOT / name).is_file()) < 10 * 2**20
