"""Recipes, defaults and headers against every table of both papers (hssl.yaml, siamese_im.yaml)."""

from collections import defaultdict

import pytest

from hssl_hf.config.evaluation_recipe import load_evaluation_recipe
from hssl_hf.config.recipe import Recipe, load_recipe
from hssl_hf.config.recipe_files import EVALUATIONS as EVALUATION_RECIPES
from hssl_hf.config.recipe_files import recipe_notes, recipes
from hssl_hf.evaluation.linear import BASE_BATCH_SIZE, LinearClassifiers
from model_cards import paper_tables
from model_cards.paper_tables import EVALUATIONS, SERVER, Row
from tests.conftest import ROOT
from tests.papers.recipe_settings import SETTINGS, heads

NUMBER_OF_ROWS = {
    "HSSL": {
        "1": 14, "2": 6, "3": 3, "4": 2, "5": 8, "6a": 8, "6b": 6, "7": 6, "8": 4, "9": 3, "10": 2, "11": 3, "12": 6, "13": 2,
        "14": 3, "15": 3, "16": 2, "17": 3, "18": 3, "19": 3, "20": 3, "21": 3, "22": 2, "23": 2, "24": 2, "25": 2,
    },
    "SiameseIM": {"1": 5, "2a": 9, "2b": 9, "2c": 6, "2d": 5, "3": 12, "4": 1, "5": 1, "6": 1, "7": 1, "8": 1, "9": 1},
}  # fmt: skip
OF_EVALUATIONS = {"Fine-tuning epochs", "Linear probing epochs", "COCO detection epochs"}  # no setting of a pre-training
ROWS = paper_tables.read_rows()
WITH_RECIPE = [row for row in ROWS if row.recipe]
PAPER_RECIPES = sorted({row.recipe for row in WITH_RECIPE})
OTHER_RECIPES = sorted(set(recipes()) - set(PAPER_RECIPES))


def find(paper: str, table: str, **settings) -> Row:
    """The only row with these settings."""
    rows = [row for row in ROWS if (row.paper, row.table, row.minus) == (paper, table, None)]
    (row,) = [row for row in rows if settings.items() <= row.settings.items()]
    return row


def identify(row: Row) -> str:
    return f"{row.paper} {row.table} {' '.join(map(str, row.settings.values()))[:60]}"


def test_every_table_has_its_number_of_rows():
    counts = defaultdict(lambda: defaultdict(int))
    for row in ROWS:
        counts[row.paper][row.table] += 1
    assert counts == NUMBER_OF_ROWS


def test_every_row_has_a_recipe_or_a_reason():
    for row in ROWS:
        assert sum(value is not None for value in (row.recipe, row.evaluation, row.method, row.waits)) == 1, row
        assert row.recipe is None or row.recipe in recipes(), row
        assert row.evaluation is None or row.evaluation in recipes(EVALUATION_RECIPES), row
        assert row.waits not in ("k-NN", "linear"), row
        assert row.method is None or row.settings["Method"] == row.method, row
        assert row.waits is None or EVALUATIONS[row.waits] is None, row
        assert row.numbers or not row.measures, row
        for evaluation, metric in row.measures.values():
            assert metric and (evaluation == SERVER or evaluation in EVALUATIONS), row


@pytest.mark.parametrize("row", WITH_RECIPE, ids=identify)
def test_recipes_have_the_printed_settings(row):
    recipe = load_recipe(recipes()[row.recipe])
    printed = {name: value for name, value in row.settings.items() if name not in OF_EVALUATIONS | {"Row"}}
    assert {name: SETTINGS[name](recipe) for name in printed} == printed


@pytest.mark.parametrize("row", [row for row in WITH_RECIPE if row.paper == "HSSL"], ids=identify)
def test_heads_are_those_of_section_4_1(row):
    """What a table does not vary: ConvNeXt, depth 3 (1 in studies on ImageNet-S300), no first shortcut, both arrows."""
    recipe = load_recipe(recipes()[row.recipe])
    if not heads(recipe):
        return
    studies = {"1", "2", "3", "4", "14", "15", "16", "17", "19"}
    expected = {"Auxiliary Head": "ConvNext", "Depth": 1 if row.table in studies else 3, "The first shortcut": "Removal"}
    expected["Supervision"] = "A→A + A→B"
    varied = set(row.settings) | ({"Auxiliary Head"} if row.table == "17" else set())
    if row.settings.get("Image-level") is False or recipe.model_type() != "hssl":
        varied.add("Supervision")
    kept = {name: value for name, value in expected.items() if name not in varied}
    assert {name: SETTINGS[name](recipe) for name in kept} == kept


def test_the_linear_probe_of_siamese_im_has_the_printed_settings():
    row = find("SiameseIM", "6")
    recipe = load_evaluation_recipe("linear", recipes(EVALUATION_RECIPES)[row.evaluation])
    config = recipe.linear
    optimizer = LinearClassifiers(4, 2, config, config.learning_rates).make_optimizer()
    printed = {
        "Data augment": ["RandomResizedCrop", "RandomHorizontalFlip"] if config.augment else [],
        "Epochs": config.epochs,
        "Batch size": config.batch_size,
        "Optimizer": config.optimizer.upper(),
        "Peak learning rate": config.learning_rates[0] * config.batch_size / BASE_BATCH_SIZE,
        "Learning rate schedule": "cosine" if config.rate_factor(50) == pytest.approx(0.5) else "another",
        "Warmup epochs": config.warmup_epochs,
        "Weight decay": max(group["weight_decay"] for group in optimizer.param_groups),
    }
    of_others = {"Input resolution", "Layers", "Hidden size", "FFN inner hidden size", "Attention heads", "Patch size"}
    assert printed == {name: value for name, value in row.settings.items() if name in printed}
    assert set(row.settings) - set(printed) <= of_others


@pytest.mark.parametrize("name", PAPER_RECIPES)
def test_headers_have_command_tables_numbers_and_cost(name):
    path = recipes()[name]
    title, command = path.read_text().splitlines()[:2]
    assert title.startswith("# ") and "Table" not in title
    assert command == f"#   accelerate launch --multi_gpu training/pretrain.py {path.relative_to(ROOT)}"
    text = " ".join(recipe_notes(path))
    assert " ".join(paper_tables.paper_lines(name)) in text
    assert " Cost: " in text and "Not run to its end by us." in text


@pytest.mark.parametrize("name", OTHER_RECIPES)
def test_recipes_of_no_row_claim_none(name):
    assert not any(line.startswith(("HSSL, Table", "SiameseIM, Table")) for line in recipe_notes(recipes()[name]))


def test_a_figure_of_a_recipe_is_the_same_in_all_tables():
    figures = defaultdict(set)
    for row in WITH_RECIPE:
        if row.minus is None:
            for column, value in row.numbers.items():
                figures[row.recipe, row.measures[column]].add(value)
    assert {key: values for key, values in figures.items() if len(values) > 1} == {}
    assert figures["s300_vits16_convnext", ("k-NN", "top-1")] == {72.7} and len(figures) > 200


def test_defaults_are_those_of_the_papers():
    """Of HSSL's ViT-S/16 (Table 20), and of SiameseIM's network (Table 3, row i)."""
    for row, recipe in (
        (find("HSSL", "20", Architecture="ViT-S/16"), Recipe()),
        (find("SiameseIM", "3", Row="(i)"), load_recipe(None, ["model.model_type=siamese_im"])),
    ):
        of_other_sections = {"Data", "Epochs", "Row", "color aug", "mask type"} | OF_EVALUATIONS
        printed = {name: value for name, value in row.settings.items() if name not in of_other_sections}
        assert {name: SETTINGS[name](recipe) for name in printed} == printed
    assert (Recipe().model_config().auxiliary, Recipe().model_config().auxiliary_depth) == ("convnext", 3), "section 4.1"
    assert not Recipe().model_config().auxiliary_first_shortcut, "section 4.1"
    assert load_recipe(None, ["model.model_type=siamese_im"]).model_config().negative_weight == 0.02, "section 4.1"


def test_rows_of_siamese_im_agree_with_each_other():
    """Table 1 is taken from Table 2, whose brackets and differences are from its two main baselines."""
    for method, epochs in (("SiameseIM", 1600), ("MAE", 1600), ("MoCo-v3", 600)):
        of_table_2 = {}
        for part in "abcd":
            row = find("SiameseIM", f"2{part}", Method=method, Epochs=epochs)
            of_table_2 |= {row.measures[column]: value for column, value in row.numbers.items()}
        robustness = [value for (evaluation, _), value in of_table_2.items() if evaluation == "robustness"]
        of_table_2["robustness", "average"] = sum(robustness) / 4
        row = find("SiameseIM", "1", Method=method)
        for column, value in row.numbers.items():
            assert value == pytest.approx(of_table_2[row.measures[column]], abs=0.051), (method, column)
    for row in ROWS:
        if row.minus:
            ours, other = (find("SiameseIM", "1", Method=name) for name in (row.settings["Method"], row.minus))
            differences = {column: round(ours.numbers[column] - other.numbers[column], 1) for column in row.numbers}
            assert row.numbers == differences
        if row.gains:
            baselines = [
                find("SiameseIM", row.table, Method="MoCo-v3"),
                find("SiameseIM", row.table, Method="MAE", Epochs=1600),
            ]
            best = {column: max(baseline.numbers.get(column, 0) for baseline in baselines) for column in row.numbers}
            assert row.gains == {column: round(value - best[column], 1) for column, value in row.numbers.items()}


def test_the_page_of_all_tables_has_every_recipe_and_reason():
    page = (ROOT / "model_cards" / "paper_tables.md").read_text()
    assert all(f"`hssl-hf pretrain {name}`" in page for name in PAPER_RECIPES)
    assert "| figures of BEiT |" in page and "(waits for this evaluation)" in page and "(which only a server can score)" in page
