from pathlib import Path

import pytest

from hssl_hf.config.recipe_files import RECIPES, find_recipe, recipe_differences, recipe_notes, recipes
from hssl_hf.errors import UserError


def test_every_recipe_has_a_name_of_its_own():
    assert len(recipes()) == len(list(RECIPES.rglob("*.yaml"))) > 50


def test_a_recipe_is_found_by_name_or_file(tmp_path, monkeypatch):
    own = tmp_path / "quickstart.yaml"
    own.write_text("seed: 1\n")
    assert find_recipe("table14_a") == RECIPES / "hssl" / "table14_a.yaml" == find_recipe("table14_a.yaml")
    assert find_recipe("quickstart") == RECIPES / "quickstart.yaml" and find_recipe(own) == own
    monkeypatch.chdir(tmp_path)
    assert find_recipe("quickstart.yaml") == Path("quickstart.yaml"), "a file comes before a name"


@pytest.mark.parametrize("name", ["tabel14_a", "hssl/tabel14_a.yaml"])
def test_an_unknown_recipe_is_refused_with_the_nearest(name):
    with pytest.raises(UserError, match=r"there is no recipe .* Did you mean table14_a"):
        find_recipe(name)


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_has_notes_and_no_command_in_them(name):
    notes = recipe_notes(recipes()[name])
    assert notes and all(notes) and not any("accelerate launch" in line for line in notes)


def test_differences_of_recipes_are_collected():
    differences = dict(recipe_differences())
    assert "SGD" in differences["s300_dino_resnet50"] and "65,536" in differences["s300_dino_vits16"]
    assert "decays biases" in differences["moco_v3_vits16"] and "table15_mlp" not in differences
