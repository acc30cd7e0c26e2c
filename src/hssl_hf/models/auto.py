"""The registry: every method, found by its two files `configuration_<name>.py` and `modeling_<name>.py` in this folder."""

import pkgutil
from importlib import import_module
from inspect import isclass

from hssl_hf import models
from hssl_hf.models.configuration_base import PreTrainingConfig


def configuration_classes() -> dict[str, type[PreTrainingConfig]]:
    """Configuration class of every method, by its `model_type`. No model is imported."""
    return {value.model_type: value for value in classes_in("configuration_").values() if "model_type" in vars(value)}


def register_configurations() -> None:
    """Make the configurations known to `AutoConfig`; no model is imported."""
    from transformers import AutoConfig

    for config in configuration_classes().values():
        AutoConfig.register(config.model_type, config, exist_ok=True)


def register_models() -> None:
    """Make the models known: `AutoModel` gives the encoder that a method keeps, `AutoModelForPreTraining` the full model."""
    from transformers import AutoModel, AutoModelForPreTraining

    from hssl_hf.models.modeling_base import EncoderModel

    for model_class in classes_in("modeling_").values():
        if config := vars(model_class).get("config_class"):
            auto = AutoModel if issubclass(model_class, EncoderModel) else AutoModelForPreTraining
            auto.register(config, model_class, exist_ok=True)


def classes_in(prefix: str) -> dict[str, type]:
    """Classes that the files of this folder with a prefix define, by name."""
    names = [module.name for module in pkgutil.iter_modules(models.__path__) if module.name.startswith(prefix)]
    modules = [import_module(f"{models.__name__}.{name}") for name in names]
    members = [(module, name, value) for module in modules for name, value in vars(module).items()]
    return {name: value for module, name, value in members if isclass(value) and value.__module__ == module.__name__}
