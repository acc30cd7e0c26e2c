"""Model cards: metadata for the Hub, numbers from records only, and committed cards that are up to date."""

import re

import pytest
import yaml
from huggingface_hub import ModelCard

from hssl_hf import HSSLMAEConfig
from hssl_hf.publish import model_card
from hssl_hf.publish.kinds import HELP, KINDS
from tests.conftest import ROOT, tiny_config
from tests.processes import Program
from tests.runs.test_manifest import MANIFEST

CARDS = ROOT / "model_cards"
RECORD = {
    "metric": "knn_top1", "value": 61.234, "unit": "percent", "subject": "pre-trained backbone", "dataset": "user/images",
    "revision": "0" * 40, "split": "test", "n": 100, "settings": {"num_neighbors": 20, "train_images": None}, "seed": 0,
    "command": "pretrain.py", "commit": "", "date": "2026-01-01T00:00:00+00:00",
}  # fmt: skip


def facts(**kwargs) -> dict:
    return model_card.facts(tiny_config(), "teacher", without_norm=False, recipe={"seed": 0}, manifest=MANIFEST, **kwargs)


def test_metadata_is_valid_for_the_hub():
    content = model_card.render(facts(license="apache-2.0", base_model="user/before"), [RECORD], repository="user/name")
    data = ModelCard(content).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "image-feature-extraction", "apache-2.0")
    assert data.datasets == ["user/images"] and data.base_model == "user/before"
    (result,) = data.eval_results
    assert (result.metric_value, result.dataset_type, result.dataset_split) == (61.23, "user/images", "test")
    assert "61.23" in content and "user/name@timm" in content and "init_from=user/name@training" in content


def test_kinds_name_their_library_and_their_branch():
    cases = {
        "timm": ("timm", "hf-hub:user/name@v2-timm"),
        "backbone": ("transformers", 'revision="v2-backbone"'),
        "training": ("hssl_hf", 'revision="v2-training"'),
    }
    assert cases.keys() == set(KINDS) - {"main"} == HELP.keys() - {"main"}
    for kind, (library, snippet) in cases.items():
        content = model_card.render(facts(backbone_class="Dinov2Backbone"), [RECORD], kind=kind, revision="v2")
        assert ModelCard(content).data.library_name == library and snippet in content and "61.23" not in content
    assert 'from_pretrained("user/name", revision="v2")' in model_card.render(facts(), revision="v2")


def test_card_states_where_feature_maps_are():
    content = model_card.render(facts(backbone_class="SwinBackbone"), revision="v2")
    assert 'SwinBackbone.from_pretrained("user/name", revision="v2-backbone")' in content
    content = model_card.render(facts(), revision="v2")
    assert "backbone_config" not in content and '"hf-hub:user/name@v2-timm", pretrained=True, features_only=True' in content


def test_no_number_without_a_record():
    """Without records there is no table of results, and the template contains no digits."""
    content = model_card.render(facts())
    assert "## Results" not in content and "model-index" not in content
    template = (CARDS / "template.md").read_text()
    assert not re.findall(r"\d", re.sub(r"\{[{%].*?[%}]\}", "", template))


def test_results_on_datasets_of_the_hub_are_eval_results():
    entries = yaml.safe_load(model_card.eval_results(facts(), [RECORD, {**RECORD, "subject": "raw pixels"}]))
    assert [(entry["dataset"]["id"], entry["dataset"]["task_id"], entry["value"]) for entry in entries] == [
        ("user/images", "knn_top1", 61.234)
    ]
    assert model_card.eval_results(facts(), [{**RECORD, "dataset": "folder"}]) is None


def test_differences_are_those_of_the_modules_in_use():
    from hssl_hf.publish.paper_differences import paper_differences

    swin, convnext = (
        {file for file, _, _ in paper_differences(tiny_config(auxiliary=name, objective="dino").described_in())}
        for name in ("swin", "convnext")
    )
    assert "auxiliary/convnext.py" in convnext - swin and "models/modeling_siamese_im.py" not in convnext
    assert swin < {file for file, _, _ in paper_differences()}


def test_committed_cards_are_up_to_date():
    paths = sorted(CARDS.glob("facts/*.yaml"))
    assert paths and all((CARDS / "results" / f"{path.stem}.jsonl").read_text().strip() for path in paths)
    program = Program(str(CARDS / "render.py"), "--check")
    output, errors = program.communicate()
    assert program.returncode == 0, output + errors


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"auxiliary": ["convnext", "vit"]}, "ibot with convnext and vit heads"),
        ({"auxiliary": "resnet18", "auxiliary_connection": "parallel"}, "ibot with a resnet18 beside it"),
    ],
)
def test_card_names_all_auxiliary_heads(changes, sentence):
    config = tiny_config(**changes)
    assert sentence in model_card.render(model_card.facts(config, "teacher", without_norm=False))


@pytest.mark.parametrize(
    ("auxiliary", "sentence"), [(None, "masked autoencoding (MAE"), ("swin", "masked autoencoding with a swin head")]
)
def test_card_of_masked_autoencoding(auxiliary, sentence):
    assert sentence in model_card.render(model_card.facts(HSSLMAEConfig(auxiliary=auxiliary), "student", without_norm=False))


HOSTILE = "a|b`<img src=x>[c](http://evil)\n# heading"


@pytest.mark.fault("texts of others in cards")
@pytest.mark.parametrize("where", ["path", "split", "dataset", "subject", "settings", "device", "recipe", "backbone_kwargs"])
def test_texts_of_others_are_no_markup(where):
    manifest, record, recipe, config = {**MANIFEST}, {**RECORD}, {"seed": 0}, tiny_config()
    if where in ("path", "split"):
        manifest["data"] = {**MANIFEST["data"], where: HOSTILE}
    elif where == "device":
        manifest["hardware"] = {**MANIFEST["hardware"], "device": HOSTILE}
    elif where == "recipe":
        recipe["data"] = {"classes": f"```\n{HOSTILE}"}
    elif where == "backbone_kwargs":
        config.backbone_kwargs = {**config.backbone_kwargs, "x": HOSTILE.replace("\n", " ")}
    else:
        record[where] = {"key": HOSTILE} if where == "settings" else HOSTILE
    values = model_card.facts(config, "teacher", without_norm=False, recipe=recipe, manifest=manifest)
    card = model_card.render(values, [record], repository="user/name").split("\n---\n", 1)[1]
    prose = re.sub(r"(?s)^(`{3,}).*?^\1$", "", card, flags=re.MULTILINE)
    outside = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", prose)
    assert "heading" in card and "\n# heading" not in prose
    assert not re.search(r"(?<!\\)(<img|\[c\]|\|b)", outside), outside


@pytest.mark.fault("damaged files of a run")
@pytest.mark.parametrize(
    "damage", [{"data": {}}, {"versions": {}, "hardware": {}}, {"estimate": {"hours": 1}}, {"seconds": "long"}]
)
def test_what_a_damaged_manifest_lacks_is_left_out_by_name(damage, caplog):
    values = model_card.facts(tiny_config(), "teacher", without_norm=False, manifest={**MANIFEST, **damage})
    assert "## Training" in model_card.render(values)
    assert "versions" in damage or "rows of its table are left out" in caplog.text


@pytest.mark.fault("damaged files of a run")
def test_an_empty_manifest(caplog):
    assert model_card.render(model_card.facts(tiny_config(), "teacher", without_norm=False, manifest={"seed": 1}))
    assert "left out: data" in caplog.text
