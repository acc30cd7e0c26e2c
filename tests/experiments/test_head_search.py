"""The search from its recipe to its winner."""

import json

import pytest
import yaml
from transformers import AutoModelForPreTraining

from hssl_hf import HeadSearchConfig
from hssl_hf.config.recipe import RecipeError, load_recipe
from hssl_hf.errors import UserError
from hssl_hf.experiments.head_search import rank, report, search_recipe
from tests.conftest import ROOT, SAMPLE, tiny_config
from tests.launches import TINY
from tests.processes import Program

QUICKSTART = ROOT / "training" / "recipes" / "quickstart.yaml"


def test_recipe_of_a_search_is_the_same_but_for_head_and_fraction():
    recipe = load_recipe(QUICKSTART, ["data.fraction=0.5"])
    search = search_recipe(recipe, ["vit", "swin"], 0.2)
    assert search.model["candidates"] == ["vit", "swin"] and "auxiliary" not in search.model and search.data.fraction == 0.1
    assert search.model["auxiliary_depth"] == 1 and search_recipe(recipe, None, 0.2, 3).model["auxiliary_depth"] == 3
    assert (search.optim, search.views, search.seed, search.probe.path) == (recipe.optim, recipe.views, recipe.seed, None)
    families = ("convnext", "poolformer", "resmlp", "resnet", "swin", "vit")
    assert search_recipe(recipe, None, 1.0).model_config().candidates == families
    assert recipe.run.logging_steps == 10 and search.run.logging_steps == 2, "as many lines as of the full training"
    plain = search_recipe(load_recipe(QUICKSTART, ["model.auxiliary=null", "model.cls_supervision=[base->base]"]), None, 0.1)
    arrows = [("auxiliary", "base"), ("auxiliary", "auxiliary")]
    assert plain.model_config().cls_arrows == arrows, "a base method gets HSSL's arrows"


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(RecipeError, match=r"only for HSSL, got model\.model_type='siamese_im'"):
        search_recipe(load_recipe(ROOT / "training" / "recipes" / "siamese_im_cifar10.yaml"), None, 0.1)
    with pytest.raises(UserError, match="data_fraction: expected a number above 0 and of at most 1, got 0"):
        search_recipe(load_recipe(QUICKSTART), None, 0.0)


def test_the_most_different_head_wins(tmp_path):
    """The last fifth of the log decides: convnext was ahead only at first."""
    lines = [
        {
            "step": step,
            "discrepancy_convnext": 9.0 if step < 8 else 0.1,
            "discrepancy_vit": 0.2,
            "discrepancy_raw_vit": 5.0,  # of prototypes without temperature and center: no candidate
            "discrepancy_swin": 0.15 + step / 1000,
        }
        for step in range(10)
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"step": 9, "knn_top1": 1.0}]))
    assert [candidate.family for candidate in rank(tmp_path)] == ["vit", "swin", "convnext"]
    table = report(tmp_path, load_recipe(QUICKSTART, ["optim.epochs=3"]))
    assert table.splitlines()[1].split()[:3] == ["1.", "vit", "0.2000"]
    assert (tmp_path / "ranking.png").stat().st_size > 10_000
    winner = load_recipe(tmp_path / "winner.yaml")
    assert winner.model["auxiliary"] == "vit" and winner.optim.epochs == 3 and winner.data.path == str(SAMPLE)
    with pytest.raises(ValueError, match="holds no search"):
        (tmp_path / "log.jsonl").write_text("")
        rank(tmp_path)


CURVES = {  # discrepancies of vit, swin and resmlp over twenty lines -> the words on the screen
    "far apart": (lambda step: (3.0, 2.0, 1.0), "settled: vit leads throughout the second half"),
    "two steps": (lambda step: (3.0, 2.0, 1.0) if step < 2 else None, "not settled: the log has too few lines"),
    "crossing": (lambda step: (step, 15.0, 1.0), "not settled: curves cross: vit is ahead of swin in 2 of 5 intervals"),
    "approaching": (lambda step: (20.0, step * 0.9, 1.0), "not settled: swin is catching up with vit"),
    "noisy": (lambda step: (3.0 + step % 2, 2.9 + step % 2, 1.0), "not settled: vit leads swin by less than both vary"),
    "the third catches up": (lambda step: (20.0, 18.9, step * 0.9), "not settled: resmlp is catching up with vit"),
}


@pytest.mark.parametrize("name", CURVES)
def test_the_screen_shows_whether_the_ranking_has_settled(tmp_path, name):
    curve, message = CURVES[name]
    lines = [
        {"step": step, **dict(zip(("discrepancy_vit", "discrepancy_swin", "discrepancy_resmlp"), values, strict=True))}
        for step in range(20)
        if (values := curve(step)) is not None
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = report(tmp_path, load_recipe(QUICKSTART))
    assert message in table and table.splitlines()[1].split()[1] == "vit"
    offers = "Search again on more images (--data-fraction), or among fewer heads (--candidates vit --candidates "
    assert (offers in table) == ("not settled" in message)


@pytest.mark.fault("widths of heads")
@pytest.mark.parametrize(
    ("family", "width", "words"), [("vit", 40, "divisible by 64 or 32"), ("swin", 40, "64 or 32"), ("resnet", 3, "at least 4")]
)
def test_a_width_that_a_family_cannot_take_names_the_family(family, width, words):
    changes = {"auxiliary": family, "auxiliary_hidden_size": width, "auxiliary_depth": 1}
    for config in (tiny_config(**changes), HeadSearchConfig(**search_arguments(family, width))):
        with pytest.raises(ValueError, match=f"the auxiliary head '{family}' cannot be built: .*{words}"):
            AutoModelForPreTraining.from_config(config)


def search_arguments(family: str, width: int) -> dict:
    values = {name: getattr(tiny_config(), name) for name in ("backbone", "backbone_kwargs", "image_size", "num_prototypes")}
    return {**values, "candidates": ["convnext", family], "auxiliary_hidden_size": width}


RUN_COMMAND = "import sys; from hssl_hf.cli.main import main; sys.exit(main(sys.argv[1:]))"


def test_through_the_command_line_on_a_fraction_of_the_images(tmp_path):
    """Two candidates on a tenth of the images; ranked, drawn, and the winner can be launched."""
    settings = [value for value in TINY if "epochs" not in value]
    settings += [f"run.output_dir={tmp_path}/search", "data.num_workers=0", "optim.epochs=0.3", "optim.warmup_epochs=0.1"]
    program = Program("-c", RUN_COMMAND, "search", *settings, "--candidates", "vit", "--candidates", "resmlp")
    output, errors = program.communicate()
    assert program.returncode == 0, errors[-3000:]
    assert "auxiliary head" in output and "winner   hssl-hf pretrain" in output
    ranking = json.loads((tmp_path / "search" / "ranking.json").read_text())
    assert {candidate["family"] for candidate in ranking} == {"vit", "resmlp"} and ranking[0]["discrepancy"] > 0
    manifest = json.loads((tmp_path / "search" / "manifest.json").read_text())
    assert manifest["data"]["images_per_epoch"] == 1000 and manifest["steps"] == round(0.3 * (1000 // 16))
    winner = yaml.safe_load((tmp_path / "search" / "winner.yaml").read_text())
    assert winner["model"]["auxiliary"] == ranking[0]["family"] and winner["data"]["fraction"] == 1.0
