"""What a user may write into a configuration, and what a file may hold."""

import copy
import json
import logging
import pickle

import pytest
import timm
import torch
from transformers import AutoConfig

from hssl_hf import HeadSearchConfig, HSSLConfig, HSSLForPreTraining, HSSLMAEConfig, SiameseIMConfig
from hssl_hf.fields import FieldError
from tests.conftest import TINY_VIT, tiny_config, tiny_views

CLASSES = [HSSLConfig, HSSLMAEConfig, SiameseIMConfig, HeadSearchConfig]


@pytest.mark.parametrize("config_class", CLASSES)
def test_a_misspelt_argument_is_refused_with_the_nearest_name(config_class):
    with pytest.raises(ValueError, match=f"{config_class.__name__} has no argument 'drop_path'. Did you mean 'drop_path_rate'"):
        config_class(drop_path=0.1)
    with pytest.raises(ValueError, match=r"has no argument 'xyz'. Expected one of backbone, backbone_kwargs, image_size"):
        config_class(xyz=1)


def test_arguments_of_every_transformers_configuration_pass():
    config = HSSLConfig(num_labels=7, attn_implementation="eager", name_or_path="user/name", output_hidden_states=True)
    assert (config.num_labels, config._attn_implementation, config.name_or_path) == (7, "eager", "user/name")
    again = HSSLConfig(**config.to_dict())
    assert again.to_dict() == config.to_dict()
    with pytest.raises(ValueError, match="expected model_type 'hssl' for HSSLConfig, got 'siamese_im'"):
        HSSLConfig(model_type="siamese_im")


@pytest.mark.parametrize("config_class", CLASSES)
def test_unknown_keys_of_a_file_are_ignored_with_a_warning(tmp_path, caplog, config_class):
    config_class(drop_path_rate=0.25).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | {"of_a_later_version": 1}))
    for load in (config_class.from_pretrained, AutoConfig.from_pretrained):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            config = load(tmp_path)
        assert type(config) is config_class and config.drop_path_rate == 0.25 and not hasattr(config, "of_a_later_version")
        assert f"a configuration file that {config_class.__name__} does not have: of_a_later_version" in caplog.text
    assert config_class.from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_what_from_pretrained_changes_is_checked_with_the_rest(tmp_path):
    HSSLConfig(objective="dino").save_pretrained(tmp_path)
    config, rest = HSSLConfig.from_pretrained(tmp_path, num_prototypes=7, other=1, return_unused_kwargs=True)
    assert config.num_prototypes == 7 and rest == {"other": 1}
    with pytest.raises(ValueError, match="'dino' has no patch level"):
        HSSLConfig.from_pretrained(tmp_path, patch_supervision=["base->base"])


def test_integers_are_accepted_as_floats():
    assert HSSLConfig(drop_path_rate=0, student_temperature=1).drop_path_rate == 0
    assert SiameseIMConfig(negative_weight=0).negative_weight == 0
    assert HSSLMAEConfig(representation_weight=2).representation_weight == 2
    with pytest.raises(FieldError, match=r"drop_path_rate: expected a number of at least 0 and below 1, got '0\.1'"):
        HSSLConfig(drop_path_rate="0.1")


@pytest.mark.parametrize(
    ("backbone", "kwargs", "size"),
    [
        ("vit_tiny_patch16_224", TINY_VIT, 224),
        ("resnet50", None, 64),
        ("convnext_atto", {"dims": [8, 16, 32, 64]}, 64),
        ("swin_tiny_patch4_window7_224", {"depths": [1, 1, 1, 1], "embed_dim": 24}, 224),
    ],
)
def test_hidden_size_is_the_width_of_the_features(backbone, kwargs, size):
    state = torch.random.get_rng_state()
    config = SiameseIMConfig(backbone=backbone, backbone_kwargs=kwargs, image_size=size)
    width = config.hidden_size
    assert torch.equal(torch.random.get_rng_state(), state), "reading it draws no random numbers"
    features = timm.create_model(backbone, num_classes=0, **kwargs or {}).eval()(torch.zeros(1, 3, 224, 224))
    assert features.shape == (1, width)
    assert "hidden_size" not in config.to_dict()


def test_defaults_follow_the_objective_and_the_head():
    values = {
        (objective, auxiliary): HSSLConfig(objective=objective, auxiliary=auxiliary)
        for objective in ("dino", "ibot", "moco_v3")
        for auxiliary in (None, "vit")
    }
    for (objective, auxiliary), config in values.items():
        assert config.cls_supervision == (("auxiliary->base", "auxiliary->auxiliary") if auxiliary else ("base->base",))
        assert config.patch_supervision == (("base->base",) if objective == "ibot" else ())


def test_a_list_with_one_parallel_network_is_that_network():
    """As the one name, also behind a loaded configuration."""
    arguments = {"auxiliary_connection": "parallel", "objective": "dino"}
    model = HSSLForPreTraining(tiny_config(auxiliary=["resnet18"], **arguments))
    assert type(model.student.auxiliary.backbone.model).__name__ == "ResNet"
    assert model(**tiny_views(grid=None)).loss.isfinite()


def test_a_resnet_head_names_its_only_sublayers():
    with pytest.raises(ValueError, match=r"leave auxiliary_sublayers at \['token_mixer', 'mlp'\], got \['mlp'\]"):
        HSSLForPreTraining(tiny_config(auxiliary="resnet", auxiliary_sublayers=["mlp"]))


@pytest.mark.parametrize("config_class", CLASSES)
def test_configurations_are_copied_and_pickled(config_class):
    config = config_class(drop_path_rate=0.3, backbone_kwargs={"depth": 3})
    for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert type(other) is config_class and other.to_dict() == config.to_dict()
