"""The registry: every method, found by its two files `configuration_<name>.py` and `modeling_<name>.py` in this folder."""

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from inspect import isclass
from types import ModuleType

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from hssl_hf import models
from hssl_hf.models.configuration_base import PreTrainingConfig


def configuration_classes() -> dict[str, type[PreTrainingConfig]]:
    """Configuration class of every method, by its `model_type`. No model is imported."""
    return {
        value.model_type: value
        for module in _modules("configuration_")
        for value in vars(module).values()
        if isclass(value) and issubclass(value, PreTrainingConfig) and "model_type" in vars(value)
    }


def register() -> None:
    """Make every method known to transformers' Auto classes; safe to call twice."""
    for config in configuration_classes().values():
        model = next(
            value
            for module in _modules("modeling_")
            for value in vars(module).values()
            if isclass(value) and vars(value).get("config_class") is config
        )
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForPreTraining.register(config, model, exist_ok=True)


def home_of(name: str) -> ModuleType | None:
    """The module that defines a public class of a method; None if there is none of this name."""
    modules = (*_modules("configuration_"), *_modules("modeling_"))
    return next((m for m in modules if getattr(getattr(m, name, None), "__module__", None) == m.__name__), None)


def _modules(prefix: str) -> Iterator[ModuleType]:
    for found in pkgutil.iter_modules(models.__path__):
        if found.name.startswith(prefix):
            yield import_module(f"{models.__name__}.{found.name}")
