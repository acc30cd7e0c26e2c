import pytest

from hssl_hf import HSSLConfig
from hssl_hf.models.configuration_hssl import parse_arrows
from tests.conftest import tiny_config


def test_defaults_are_the_released_ones():
    config = HSSLConfig()
    assert config.auxiliary == "convnext" and config.auxiliary_depth == 3 and not config.auxiliary_first_shortcut
    assert parse_arrows(config.cls_supervision) == [("auxiliary", "base"), ("auxiliary", "auxiliary")]
    assert parse_arrows(config.patch_supervision) == [("base", "base")]
    assert config.num_prototypes == 8192 and config.reduction == "mean"


@pytest.mark.parametrize(("objective", "patches"), [("dino", []), ("ibot", [("base", "base")]), ("moco_v3", [])])
def test_default_arrows_suit_objective_and_head(objective, patches):
    config = tiny_config(objective=objective)
    assert config.cls_arrows == [("auxiliary", "base"), ("auxiliary", "auxiliary")] and config.patch_arrows == patches
    alone = tiny_config(objective=objective, auxiliary=None)
    assert alone.cls_arrows == [("base", "base")] and alone.patch_arrows == patches


def test_round_trip(tmp_path):
    config = tiny_config(auxiliary="swin", reduction="sum")
    config.save_pretrained(tmp_path)
    assert HSSLConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auxiliary": "convnet"}, "auxiliary: expected one of 'convnext', .*, got 'convnet'"),
        ({"auxiliary": None, "cls_supervision": ["auxiliary->base"]}, "needs an auxiliary head, but auxiliary is null"),
        ({"cls_supervision": ["base=>base"]}, r"cls_supervision\[0\]: expected one of 'base->base', .*, got 'base=>base'"),
        ({"cls_supervision": []}, "cls_supervision: expected an arrow such as 'base->base'"),
        ({"objective": "dino", "patch_supervision": ["base->base"]}, "has no patch level"),
        ({"shallow_block": 1}, "shallow_block: expected a base alone at the image level"),
        ({"visible_patches_only": True, "auxiliary": None}, "visible_patches_only: expected a base alone at the image level"),
        (
            {"objective": "dino", "auxiliary": None, "shallow_block": 1, "visible_patches_only": True},
            "shallow_block: expected null, since it cannot be combined with visible_patches_only",
        ),
        (
            {"objective": "dino", "auxiliary": None, "cls_supervision": ["base->base", "base->shallow"]},
            "needs shallow_block, the block that is supervised",
        ),
        (
            {"objective": "dino", "cls_supervision": ["auxiliary->base"], "patch_supervision": []},
            "'auxiliary' teaches but learns nowhere",
        ),
    ],
)
def test_invalid_values_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


def test_wrong_types_are_refused():
    with pytest.raises(Exception, match="auxiliary_depth"):
        tiny_config(auxiliary_depth="three")
