"""Model cards: metadata for the Hub, numbers from records only, and committed cards that are up to date."""

import re

import pytest
import yaml
from huggingface_hub import ModelCard

from hssl_hf import HSSLMAEConfig, SiameseIMConfig
from hssl_hf.publish import model_card
from hssl_hf.publish.citations import CITATIONS
from hssl_hf.publish.kinds import HELP, KINDS
from tests.conftest import MAE, ROOT, tiny_config
from tests.faults import refused
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
    origin = {"name": "user/before", "license": "mit", "base_model": ["user/before"]}
    content = model_card.render(facts(license="apache-2.0", origin=origin), [RECORD], repository="user/name")
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
        ({"auxiliary": ["convnext", "vit"]}, "iBOT with ConvNeXt and ViT heads"),
        ({"auxiliary": "resnet18", "auxiliary_connection": "parallel"}, "iBOT with a resnet18 beside it"),
    ],
)
def test_card_names_all_auxiliary_heads(changes, sentence):
    config = tiny_config(**changes)
    assert sentence in model_card.render(model_card.facts(config, "teacher", without_norm=False))


@pytest.mark.parametrize(
    ("auxiliary", "sentence"), [(None, "masked autoencoding (MAE"), ("swin", "masked autoencoding with a Swin head")]
)
def test_card_of_masked_autoencoding(auxiliary, sentence):
    assert sentence in model_card.render(model_card.facts(HSSLMAEConfig(auxiliary=auxiliary), "student", without_norm=False))


BEFORE = {"name": "user/before", "commit": "0" * 40, "base_model": ["user/before"]}


@pytest.mark.parametrize(
    ("origin", "license", "sentences"),
    [
        ({**BEFORE, "license": "mit"}, "mit", ["`user/before` at commit `000", ", under `mit`.", "weights are under `mit`."]),
        (
            {**BEFORE, "license": "cc-by-nc-4.0"},
            "cc-by-nc-4.0",
            ["`cc-by-nc-4.0`, not for commercial use.", "**They are not for"],
        ),
        ({**BEFORE, "license": None}, None, ["whose license is **unknown**"]),
        (
            {**BEFORE, "license": "other", "license_name": "x-nc", "license_link": "https://host/x"},
            "other",
            ["under `other` (`x-nc`, `https://host/x`), not for commercial use", "**They are not for commercial use.**"],
        ),
        (
            {"name": "folder", "license": "apache-2.0", "release": {"method": "DINO", "detected": True}},
            "apache-2.0",
            ["`folder`, converted from a checkpoint of DINO, as the layout of the file suggests, under `apache-2.0`."],
        ),
    ],
)
def test_card_of_continued_training_names_origin_and_license(origin, license, sentences):
    """The license is inherited, also by every kind of export."""
    for kind in KINDS:
        content = model_card.render(facts(origin=origin, backbone_class="Dinov2Backbone"), kind=kind)
        assert all(sentence in content for sentence in sentences), content
        data = ModelCard(content).data
        assert data.license == license and data.base_model == ("user/before" if "base_model" in origin else None)
        assert data.get("base_model_relation") == ("finetune" if "base_model" in origin else None)
        assert data.get("license_name") == origin.get("license_name")
        assert "Trained on `user/images` only" not in content
    assert ("commercial" in content) == (origin["license"] not in ("mit", "apache-2.0", None))


@pytest.mark.fault("licenses")
def test_card_with_a_more_permissive_license_is_refused():
    for change in ({"license": "apache-2.0"}, {"origin": {**BEFORE, "license": "gpl-3.0"}, "license": "mit"}):
        values = facts(**{"origin": {**BEFORE, "license": "cc-by-nc-4.0"}, **change})
        with refused("license: expected"):
            model_card.render(values)


@pytest.mark.parametrize(
    ("method", "detected", "sentence"),
    [
        ("MAE", True, "a checkpoint of MAE, as the layout of the file suggests."),
        ("iBOT", False, "a checkpoint of iBOT, as it was named for the conversion."),
        ("SiameseIM", True, "a checkpoint of SiameseIM, as the layout of the file suggests."),
    ],
)
def test_card_of_a_conversion_cites_the_method_of_the_checkpoint(method, detected, sentence):
    release = {"method": method, "file": "weights.pth", "detected": detected}
    config = tiny_config(auxiliary=None, objective="dino", license="cc-by-nc-4.0")
    content = model_card.render(model_card.facts(config, "teacher", without_norm=False, release=release))
    assert f"converted from the file `weights.pth`: {sentence}" in content and f"by {method}\n" in content
    assert CITATIONS[method] in content and content.count("```bibtex") == 1
    assert f"under `cc-by-nc-4.0`, as is the release of {method}. **They are not for commercial use.**" in content


@pytest.mark.parametrize(
    ("config", "method"),
    [
        (lambda: tiny_config(), "HSSL"),
        (lambda: tiny_config(auxiliary=None), "iBOT"),
        (lambda: tiny_config(auxiliary=None, objective="dino"), "DINO"),
        (lambda: tiny_config(auxiliary=None, objective="moco_v3"), "MoCo v3"),
        (lambda: tiny_config(auxiliary=None, objective="dino", shallow_block=1, cls_supervision=SHALLOW), "HSSL"),
        (lambda: HSSLMAEConfig(auxiliary=None), "MAE"),
        (lambda: HSSLMAEConfig(), "HSSL"),
        (lambda: SiameseIMConfig(), "SiameseIM"),
        (lambda: SiameseIMConfig(**MAE), "MAE"),
        (lambda: SiameseIMConfig(level="global"), "SiameseIM"),
    ],
)
def test_card_cites_the_method_of_the_configuration(config, method):
    content = model_card.render(model_card.facts(config(), "student", without_norm=False))
    assert CITATIONS[method] in content and content.count("```bibtex") == 1


SHALLOW = ("base->base", "base->shallow")


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({}, "ViT of width 64, depth 2 and patch size 8 by HSSL"),
        (
            {"backbone": "vit_small_patch16_224", "backbone_kwargs": None, "image_size": 224},
            "ViT of width 384, depth 12 and patch size 16",
        ),
        (
            {"backbone": "vit_base_patch16_224", "backbone_kwargs": {"depth": 3, "patch_size": 4}},
            "width 768, depth 3 and patch size 4",
        ),
        ({"backbone": "resnet18", "backbone_kwargs": None, "objective": "dino"}, "# resnet18 by HSSL"),
        (
            {"backbone": "convnext_atto", "backbone_kwargs": {"depths": [1, 1, 1, 1]}, "objective": "dino"},
            "# convnext_atto with depths=",
        ),
    ],
)
def test_title_has_the_real_size(changes, title):
    content = model_card.render(model_card.facts(tiny_config(**changes), "teacher", without_norm=False))
    assert title in next(line for line in content.splitlines() if line.startswith("# "))


@pytest.mark.parametrize(
    ("paths", "named"),
    [
        ({"path": "user/images"}, None),
        ({"path": "fashion_mnist"}, "`data.path` is"),
        ({"path": "https://host/train.tar"}, "`data.path` is"),
        ({"path": "user/images", "classes": "classes.txt"}, "`data.classes` is"),
        ({"path": "images", "init_from": "export"}, "`init_from`, `data.path` are"),
        ({"path": "user/images", "init_from": "user/before@training"}, None),
    ],
)
def test_only_a_recipe_whose_paths_are_complete_reproduces_the_run(paths, named):
    recipe = {"init_from": paths.pop("init_from", None), "data": paths}
    content = model_card.render({**facts(), "recipe": recipe})
    assert "`hssl-hf` (`pip install hssl-hf`)" in content
    assert ("processes reproduces the run" in content) == (named is None) == ("alone does not reproduce the run" not in content)
    assert named is None or f"reproduce the run: {named} not on the" in content


HOSTILE = "a|b`<img src=x>[c](http://evil)\n# heading"


@pytest.mark.fault("texts of others in cards")
@pytest.mark.parametrize(
    "where", ["path", "split", "dataset", "subject", "settings", "device", "recipe", "backbone_kwargs", "origin", "release"]
)
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
    elif where in ("origin", "release"):
        pass
    else:
        record[where] = {"key": HOSTILE} if where == "settings" else HOSTILE
    line = HOSTILE.replace("\n", " ")
    others = {"origin": {"name": line, "license": "other", "license_name": line}, "release": {"method": line, "file": line}}
    about = {where: others[where]} if where in others else {}
    values = model_card.facts(config, "teacher", without_norm=False, recipe=recipe, manifest=manifest, **about)
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
