import re
import subprocess
from functools import partial

import datasets
import pytest

import hssl_hf
from hssl_hf.publish.card_text import segmentation_usage
from model_cards import pages
from tests.conftest import ROOT, SAMPLE

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda path: path.name)
def test_generated_parts_are_up_to_date(page):
    """If this fails: python -m model_cards.pages."""
    assert pages.render(page.read_text()) == page.read_text()


def test_differences_and_results_are_collected():
    results, differences = (path.read_text() for path in pages.PAGES[1:3])
    assert "equations 1 and 2 add the terms" in differences and "DINO's code trains a ResNet-50 with SGD" in differences
    assert "| with a poolformer head |" in README and "| poolformer |" in results


@pytest.mark.parametrize("page", [*pages.PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_links_resolve(page):
    links = [link for link in re.findall(r"\]\(([^)]+)\)", page.read_text()) if not link.startswith(("http", "#"))]
    assert links and all((page.parent / link).exists() for link in links)


@pytest.mark.parametrize("target", ["quickstart", "test"])
def test_commands_exist(target):
    assert f"make {target}" in README
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Images of the embedded sample, in a folder of the working directory."""
    rows = datasets.load_dataset("parquet", data_dir=str(SAMPLE), split="test", streaming=True).take(16)
    (tmp_path / "photos").mkdir()
    for number, row in enumerate(rows):
        row["image"].convert("RGB").save(tmp_path / "photos" / f"{number:02d}.png")
    monkeypatch.chdir(tmp_path)


def test_similar_photographs_in_five_lines(photos, monkeypatch, forked_parity):
    """The first block, with a network of one block and four steps, on images of the embedded sample."""
    tiny = {"model.backbone_kwargs": {"patch_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 1, "weight_init": "moco"}}
    tiny |= {"optim.epochs": 4, "optim.batch_size": 8, "optim.warmup_epochs": 1, "optim.mixed_precision": "no"}
    tiny |= {"data.num_workers": 0, "model.projection_hidden_size": 16, "model.projection_size": 8}
    block = python_blocks()[0]
    assert len(block.partition("\n\n")[2].strip().splitlines()) == 5
    monkeypatch.setattr(hssl_hf, "pretrain", partial(hssl_hf.pretrain, overrides=tiny))
    scope = {}
    exec(block, scope)
    assert len(scope["similar"]) == 5 and scope["similar"][0] == "photos/00.png"


def test_python_of_the_readme_runs():
    """The blocks about training build what they name; that about feature maps is the one of the cards, which tests run."""
    blocks = python_blocks()
    expected = segmentation_usage({"backbone_class": "Dinov2Backbone"}, "user/name", {"backbone": "backbone"})
    assert len(blocks) == 5 and "AutoModel.from_pretrained" in blocks[1] and blocks[4].strip() == expected
    scope = {}
    exec(blocks[2].replace('backbone="vit_small', 'backbone_kwargs={"depth": 1}, backbone="vit_small'), scope)
    assert scope["model"].config.auxiliary == "convnext" and scope["siamese"].config.target == "feature"


def test_the_trainer_of_transformers_trains_as_the_readme_shows(photos, monkeypatch):
    momenta = []
    monkeypatch.setattr(hssl_hf.HSSLForPreTraining, "update_teacher", lambda _, momentum: momenta.append(momentum))
    tiny = {"backbone_kwargs": {"patch_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 1}, "num_prototypes": 16}
    quick = {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True}
    quick["dataloader_pin_memory"] = False
    block = python_blocks()[3].replace('objective="dino"', f'objective="dino", **{tiny}')
    exec(block.replace("remove_unused_columns", f"**{quick}, remove_unused_columns"), {})
    assert momenta == pytest.approx([0.996, 0.998])


def test_every_folder_is_explained():
    folders = {path.parent.name for path in (ROOT / "src" / "hssl_hf").glob("*/__init__.py")}
    assert all(f"| `{name}/` |" in (ROOT / "CONTRIBUTING.md").read_text() for name in folders)
