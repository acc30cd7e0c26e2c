"""Heterogeneous self-supervised learning and siamese image modeling in the Hugging Face ecosystem.

The public names are loaded on first use, so that the command line answers at once. The models become known to transformers'
`AutoConfig`, `AutoModel` and `AutoModelForPreTraining` when this package is imported after transformers, or else with the first
use of any of its names.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hssl_hf.configuration_head_search import HeadSearchConfig
    from hssl_hf.configuration_hssl import HSSLConfig
    from hssl_hf.configuration_mae import MAEConfig
    from hssl_hf.configuration_siamese_im import SiameseIMConfig
    from hssl_hf.convert import convert_checkpoint
    from hssl_hf.export import export_backbone
    from hssl_hf.modeling_head_search import HeadSearchForPreTraining
    from hssl_hf.modeling_hssl import HSSLForPreTraining, HSSLOutput
    from hssl_hf.modeling_mae import MAEForPreTraining, MAEOutput
    from hssl_hf.modeling_siamese_im import SiameseIMForPreTraining, SiameseIMOutput

_HOMES = {
    "HSSLConfig": "hssl_hf.configuration_hssl",
    "HSSLForPreTraining": "hssl_hf.modeling_hssl",
    "HeadSearchConfig": "hssl_hf.configuration_head_search",
    "HeadSearchForPreTraining": "hssl_hf.modeling_head_search",
    "HSSLOutput": "hssl_hf.modeling_hssl",
    "MAEConfig": "hssl_hf.configuration_mae",
    "MAEForPreTraining": "hssl_hf.modeling_mae",
    "MAEOutput": "hssl_hf.modeling_mae",
    "SiameseIMConfig": "hssl_hf.configuration_siamese_im",
    "SiameseIMForPreTraining": "hssl_hf.modeling_siamese_im",
    "SiameseIMOutput": "hssl_hf.modeling_siamese_im",
    "convert_checkpoint": "hssl_hf.convert",
    "export_backbone": "hssl_hf.export",
}
__all__ = [
    "HSSLConfig",
    "HSSLForPreTraining",
    "HSSLOutput",
    "HeadSearchConfig",
    "HeadSearchForPreTraining",
    "MAEConfig",
    "MAEForPreTraining",
    "MAEOutput",
    "SiameseIMConfig",
    "SiameseIMForPreTraining",
    "SiameseIMOutput",
    "convert_checkpoint",
    "export_backbone",
    "register",
]


def register() -> None:
    """Make the models known to transformers' Auto classes; safe to call twice."""
    from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

    from hssl_hf.configuration_head_search import HeadSearchConfig
    from hssl_hf.configuration_hssl import HSSLConfig
    from hssl_hf.configuration_mae import MAEConfig
    from hssl_hf.configuration_siamese_im import SiameseIMConfig
    from hssl_hf.modeling_head_search import HeadSearchForPreTraining
    from hssl_hf.modeling_hssl import HSSLForPreTraining
    from hssl_hf.modeling_mae import MAEForPreTraining
    from hssl_hf.modeling_siamese_im import SiameseIMForPreTraining

    for config, model in (
        (HSSLConfig, HSSLForPreTraining),
        (HeadSearchConfig, HeadSearchForPreTraining),
        (MAEConfig, MAEForPreTraining),
        (SiameseIMConfig, SiameseIMForPreTraining),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForPreTraining.register(config, model, exist_ok=True)


if "transformers" in sys.modules:
    register()


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'hssl_hf' has no attribute {name!r}; it has {', '.join(__all__)}")
    register()
    return getattr(import_module(_HOMES[name]), name)
