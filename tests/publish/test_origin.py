"""The origin of weights, read from the cards beside them, and what it leaves of a model's license."""

import json

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard

from hssl_hf.pretraining.initialization import load_initial_weights
from hssl_hf.publish import model_card
from hssl_hf.publish.hub import push, push_model
from hssl_hf.publish.licenses import LicenseError
from hssl_hf.publish.origin import Origin, Release, as_plain, read_origin, settle, timm_origin
from tests.conftest import tiny_config, tiny_model
from tests.hub_server.server import TOKEN

NC = "cc-by-nc-4.0"
CARDS = {  # metadata of a card -> license, license_name, license_link, base_model
    "license: apache-2.0": ("apache-2.0", None, None, ()),
    f"license: {NC}\nbase_model: user/before": (NC, None, None, ("user/before",)),
    f"license: {NC.upper()}\nbase_model: [user/a, user/b, '/home/c']": (NC, None, None, ("user/a", "user/b")),
    "license: other\nlicense_name: no-nc\nlicense_link: https://host/terms": ("other", "no-nc", "https://host/terms", ()),
    "license: other\nlicense_link: LICENSE": ("other", None, None, ()),
    "license: [mit, cc-by-nc-4.0]": ("other", "mit, cc-by-nc-4.0", None, ()),
    "license: The Terms of  Us": ("other", "The Terms of Us", None, ()),
    "license: unknown": (None, None, None, ()),
    "license: 3": (None, None, None, ()),
    "tags: [a]": (None, None, None, ()),
}


@pytest.mark.parametrize("metadata", CARDS)
def test_card_of_a_folder(metadata, tmp_path):
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n\n# A model\n")
    expected = Origin(tmp_path.name, None, None, *CARDS[metadata])
    assert read_origin(str(tmp_path)) == expected


@pytest.mark.fault("cards of others")
@pytest.mark.parametrize(
    "text", [None, "", "no metadata", "---\n: [\n---\n", "---\n- a\n---\n", "---\nlicense: {a: b}\n---\n", "\0\xff"]
)
def test_without_a_card_that_can_be_read_the_license_is_unknown(text, tmp_path):
    if text is not None:
        (tmp_path / "README.md").write_bytes(text.encode("latin-1"))
    (tmp_path / "facts.yaml").write_text("release: [")
    assert read_origin(str(tmp_path)) == Origin(tmp_path.name)
    assert read_origin(str(tmp_path), declared=NC).license == NC


def test_the_stricter_of_card_and_configuration_counts(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert read_origin(str(tmp_path), declared=NC).license == NC
    assert read_origin(str(tmp_path), declared="apache-2.0").license == "mit"


def test_license_of_a_repository_and_its_commit(hub, staged, monkeypatch):
    """Of the branch that is named, and of main where that has no card; a relative link leads to the repository."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    commits = push(staged, "user/name", token=TOKEN)
    assert read_origin("user/name", "training", commits["training"].oid) == Origin(
        "user/name", "training", commits["training"].oid, base_model=("user/name",)
    )
    api = HfApi(token=TOKEN)
    card = b"---\nlicense: other\nlicense_name: my-nc-license\nlicense_link: LICENSE.md\n---\n"
    done = api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="user/name")
    origin = read_origin("user/name", None, done.oid)
    assert (origin.license, origin.license_name) == ("other", "my-nc-license")
    assert origin.license_link == f"https://huggingface.co/user/name/blob/{done.oid}/LICENSE.md"
    without = api.delete_file("README.md", "user/name", revision="timm")
    assert read_origin("user/name", "timm", without.oid).license_name == "my-nc-license"


def test_initial_weights_from_the_hub_have_the_commit_of_their_branch(hub, staged, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    commits = push(staged, "user/name", token=TOKEN)
    for kind, where in (("main", "user/name"), ("timm", "user/name@timm"), ("training", "user/name@training")):
        _, origin = load_initial_weights(tiny_model(), where)
        assert origin == Origin("user/name", kind if "@" in where else None, commits[kind].oid, base_model=("user/name",))


@pytest.mark.parametrize(
    ("architecture", "kwargs", "expected"),
    [
        ("vit_base_patch16_224", {}, None),
        ("vit_base_patch16_224", {"pretrained": False}, None),
        ("vit_base_patch16_224.mae", {"pretrained": True}, ("timm/vit_base_patch16_224.mae", NC)),
        ("vit_small_patch16_224.dino", {"pretrained": True}, ("timm/vit_small_patch16_224.dino", "apache-2.0")),
        ("vit_base_patch16_224", {"pretrained": True, "pretrained_cfg": "mae"}, ("timm/vit_base_patch16_224.mae", NC)),
        ("vit_base_patch16_224", {"checkpoint_path": "/home/me/mae.pth"}, ("mae.pth", None)),
        ("vit_base_patch16_224", {"pretrained": True, "pretrained_cfg_overlay": {"file": "/x/w.pth"}}, ("w.pth", None)),
        ("vit_base_patch16_224", {"pretrained": True, "pretrained_cfg": {"hf_hub_id": "user/w"}}, ("user/w", None)),
    ],
)
def test_weights_that_timm_loads(architecture, kwargs, expected):
    origin = timm_origin(architecture, kwargs)
    assert (origin and (origin.name, origin.license)) == expected


def test_card_of_weights_that_timm_loads_names_their_license():
    config = tiny_config(backbone="vit_base_patch16_224.mae", backbone_kwargs={"pretrained": True}, image_size=224)
    card = model_card.render(model_card.facts(config, "teacher", without_norm=False))
    data = ModelCard(card).data
    assert (data.license, data.base_model, data.base_model_relation) == (NC, "timm/vit_base_patch16_224.mae", "finetune")
    assert "not for commercial use" in card


@pytest.mark.parametrize(
    ("declared", "chosen", "inherited", "expected"),
    [
        (None, None, None, None),
        (None, "mit", None, "mit"),
        (None, None, NC, NC),
        (None, "cc-by-nc-sa-4.0", NC, "cc-by-nc-sa-4.0"),
        ("cc-by-nc-sa-4.0", None, NC, "cc-by-nc-sa-4.0"),
        (None, "gpl-3.0", "apache-2.0", "gpl-3.0"),
    ],
)
def test_license_of_a_model(declared, chosen, inherited, expected):
    assert settle(declared, chosen, Origin("user/before", license=inherited)) == expected


@pytest.mark.fault("licenses")
@pytest.mark.parametrize(
    ("declared", "chosen", "inherited", "word"),
    [
        (None, "apache-2.0", NC, "license: expected cc-by-nc-4.0"),
        ("mit", None, NC, "model.license: expected cc-by-nc-4.0"),
        (NC, "mit", None, "license: expected cc-by-nc-4.0"),
        ("cc-by-nc-sa-4.0", NC, "apache-2.0", "license: expected cc-by-nc-sa-4.0"),
        (None, "mit", "gpl-3.0", "the training started from user/before, under gpl-3.0"),
        (None, "other", NC, "which forbids commercial use"),
    ],
)
def test_a_more_permissive_license_is_refused(declared, chosen, inherited, word):
    with pytest.raises(LicenseError) as error:
        settle(declared, chosen, Origin("user/before", license=inherited))
    assert word in str(error.value)


@pytest.mark.fault("licenses")
def test_no_push_of_a_model_relicenses_it(hub):
    with pytest.raises(LicenseError, match="forbids commercial use"):
        push_model(tiny_model(license=NC), "user/name", license="apache-2.0", token=TOKEN)
    assert hub.requests == []


def test_plain_values_come_back():
    origin = Origin("user/name", "training", "0" * 40, NC, base_model=("user/name",), release=Release("MAE", "a.pth", True))
    for plain in (json.loads(json.dumps(as_plain(origin))), yaml.safe_load(yaml.safe_dump(as_plain(origin)))):
        assert Origin(**{**plain, "release": Release(**plain["release"])}) == origin
