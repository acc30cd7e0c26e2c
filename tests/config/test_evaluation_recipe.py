"""Recipes of evaluations are as strict as those of pre-training."""

import pytest

from hssl_hf.config.evaluation_recipe import load_evaluation_recipe
from hssl_hf.config.strict_yaml import RecipeError


def test_a_recipe_and_what_replaces_its_values(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("protocol: linear\ndata: {path: folder}\nlinear: {epochs: 3}\n")
    recipe = load_evaluation_recipe("linear", path, ["linear.batch_size=64", "representation.features=patches"])
    assert (recipe.data.path, recipe.linear.epochs, recipe.linear.batch_size) == ("folder", 3, 64)
    assert recipe.representation.features == "patches" and recipe.knn.num_neighbors == (10, 20, 100, 200)
    assert load_evaluation_recipe(None, path).protocol == "linear"


@pytest.mark.fault("recipes of evaluations")
@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("protocol: linear\ndata: {path: folder}", [], "recipe of the protocol 'linear', but 'knn' was requested"),
        ("protocol: knn", [], "name the images"),
        ("protocol: knn\ndata: {path: folder}", ["knn.num_neighbors=[20, 10]"], "in ascending order"),
        ("protocol: knn\ndata: {path: folder}", ["knn.num_neighbors=20"], "expected a list"),
        ("protocol: knn\ndata: {pth: folder}", [], "Did you mean 'path'"),
        ("protocol: k-NN\ndata: {path: folder}", [], "expected one of"),
        ("protocol: knn\nmodel: {}\ndata: {path: folder}", [], "unknown key"),
        ("protocol: knn\ndata: {path: folder}", ["extraction.cache_limit_gib=0"], "above 0"),
    ],
)
def test_what_cannot_be_evaluated(text, overrides, message, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message.replace("[", r"\[")):
        load_evaluation_recipe("knn", path, overrides)
