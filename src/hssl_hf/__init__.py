"""Heterogeneous self-supervised learning and siamese image modeling in the Hugging Face ecosystem.

Public names are imported on first use, so that the command line starts at once. The models become known to transformers'
`AutoConfig`, `AutoModel` and `AutoModelForPreTraining` as soon as both packages are imported, in any order.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from hssl_hf.models import import_hook

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hssl_hf.cli.api import evaluate, export, pretrain, search_heads
    from hssl_hf.convert import convert_checkpoint
    from hssl_hf.engine.trainer_callback import TeacherUpdateCallback, collate_views
    from hssl_hf.models.configuration_head_search import HeadSearchConfig
    from hssl_hf.models.configuration_hssl import HSSLConfig
    from hssl_hf.models.configuration_mae import HSSLMAEConfig
    from hssl_hf.models.configuration_siamese_im import SiameseIMConfig
    from hssl_hf.models.modeling_head_search import HeadSearchForPreTraining, HeadSearchModel
    from hssl_hf.models.modeling_hssl import HSSLForPreTraining, HSSLForPreTrainingOutput, HSSLModel
    from hssl_hf.models.modeling_mae import HSSLMAEForPreTraining, HSSLMAEForPreTrainingOutput, HSSLMAEModel
    from hssl_hf.models.modeling_siamese_im import SiameseIMForPreTraining, SiameseIMForPreTrainingOutput, SiameseIMModel
    from hssl_hf.publish.export import export_backbone

__all__ = [
    "HSSLConfig",
    "HSSLForPreTraining",
    "HSSLForPreTrainingOutput",
    "HSSLMAEConfig",
    "HSSLMAEForPreTraining",
    "HSSLMAEForPreTrainingOutput",
    "HSSLMAEModel",
    "HSSLModel",
    "HeadSearchConfig",
    "HeadSearchForPreTraining",
    "HeadSearchModel",
    "SiameseIMConfig",
    "SiameseIMForPreTraining",
    "SiameseIMForPreTrainingOutput",
    "SiameseIMModel",
    "TeacherUpdateCallback",
    "collate_views",
    "convert_checkpoint",
    "evaluate",
    "export",
    "export_backbone",
    "pretrain",
    "search_heads",
]
_MODULES = {  # of the public names that are not classes of models
    "TeacherUpdateCallback": "engine.trainer_callback",
    "collate_views": "engine.trainer_callback",
    "convert_checkpoint": "convert",
    "export_backbone": "publish.export",
    **dict.fromkeys(("evaluate", "export", "pretrain", "search_heads"), "cli.api"),
}


def __getattr__(name: str):
    auto = import_module("hssl_hf.models.auto")
    if name in _MODULES:
        return getattr(import_module(f"hssl_hf.{_MODULES[name]}"), name)
    classes = auto.classes_in("configuration_") | auto.classes_in("modeling_")
    if name not in classes:
        raise AttributeError(f"module 'hssl_hf' has no attribute {name!r}; it has {', '.join(__all__)}")
    return classes[name]


import_hook.call_after_import("transformers.models.auto.configuration_auto", "hssl_hf.models.auto", "register_configurations")
import_hook.call_after_import("transformers.models.auto.modeling_auto", "hssl_hf.models.auto", "register_models")
