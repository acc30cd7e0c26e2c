"""Call a function as soon as a module of another package has been imported, without importing that package.

transformers has no entry point through which a package could announce its models to the Auto classes.
"""

import sys
import warnings
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType


def call_after_import(name: str, module: str, function: str) -> None:
    """Call `module.function()` now, if the module `name` has been imported, or else right after its import."""
    if name in sys.modules:
        _call(module, function)
    else:
        sys.meta_path.insert(0, _Finder(name, module, function))


class _Finder:
    """Finds one module as the other finders do, and then makes way; a failing call is reported, and the import goes on."""

    def __init__(self, name: str, module: str, function: str):
        self.name, self.call = name, (module, function)

    def find_spec(self, name: str, path=None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        specs = (finder.find_spec(name, path, target) for finder in list(sys.meta_path))
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_call(module: ModuleType) -> None:
                execute(module)
                try:
                    _call(*self.call)
                except Exception as error:
                    warnings.warn(f"hssl_hf could not make its models known to transformers: {error}", stacklevel=2)

            spec.loader.exec_module = execute_and_call
        return spec


def _call(module: str, function: str) -> None:
    getattr(import_module(module), function)()
