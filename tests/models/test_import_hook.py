"""Both packages in one process, imported in any order: the Auto classes know our models."""

import subprocess
import sys

import pytest

from hssl_hf.models.import_hook import call_after_import
from tests.conftest import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(path)
    return path


IMPORTS = {
    "hssl_hf first": "import hssl_hf; from transformers import AutoConfig, AutoModel",
    "hssl_hf last": "from transformers import AutoConfig, AutoModel; import hssl_hf",
    "between": "from transformers import AutoConfig; import hssl_hf; from transformers import AutoModel",
    "behind the trainer": "import hssl_hf, transformers.trainer; from transformers import AutoConfig, AutoModel",
    "a module of ours first": "from hssl_hf.models import modeling_hssl; from transformers import AutoConfig, AutoModel",
    "a class of ours first": "from hssl_hf import SiameseIMConfig; from transformers import AutoConfig, AutoModel",
}


slow = [pytest.param(code, marks=pytest.mark.slow, id=name) for name, code in IMPORTS.items() if "hssl_hf " not in name]


@pytest.mark.parametrize("imports", [IMPORTS["hssl_hf first"], IMPORTS["hssl_hf last"], *slow])
def test_auto_classes_know_the_models_in_any_order_of_imports(folder, imports):
    """And none of the libraries that only evaluations and figures use is imported with them."""
    unwanted = {"datasets", "evaluate", "pandas", "matplotlib"} if "trainer" not in imports else {"matplotlib"}
    code = f"""{imports}; import sys
names = [type(auto.from_pretrained({str(folder)!r})).__name__ for auto in (AutoConfig, AutoModel)]
assert names == ["HSSLConfig", "HSSLModel"], names
assert not {unwanted} & set(sys.modules)"""
    done = subprocess.run([sys.executable, "-W", "error:hssl_hf", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_importing_the_package_imports_no_library():
    code = """
import sys, time
started = time.process_time()
import hssl_hf
seconds = time.process_time() - started
assert not {"transformers", "torch", "timm", "numpy"} & set(sys.modules) and seconds < 0.05, seconds
from transformers import AutoConfig
assert AutoConfig.for_model("hssl").model_type == "hssl"
assert not [name for name in sys.modules if "modeling" in name and name.startswith("hssl_hf")]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_failing_call_is_reported_and_the_import_goes_on(tmp_path, monkeypatch):
    (tmp_path / "imported_later.py").write_text("value = 3")
    (tmp_path / "called_then.py").write_text("def fail():\n    raise RuntimeError('cause')")
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)
    call_after_import("imported_later", "called_then", "fail")
    with pytest.warns(UserWarning, match="could not make its models known to transformers: cause"):
        import imported_later
    assert imported_later.value == 3 and sys.meta_path == finders
