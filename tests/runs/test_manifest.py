"""The content of a manifest, and what it must not contain."""

import json

import pytest
from accelerate import Accelerator

from hssl_hf.config.recipe import load_recipe
from hssl_hf.runs import manifest
from tests.conftest import SAMPLE

MANIFEST = {
    "data": {
        "path": "user/images", "name": None, "split": "train", "revision": "0" * 40, "fingerprint": "ab", "images_per_epoch": 10
    },
    "seed": 0, "commit": "", "versions": {"python": "3.11"}, "engine": "single", "processes": 1,
    "hardware": {"device": "a processor", "device_memory_gib": 1.0, "cores": 2, "system": "Linux"},
    "steps": 3, "images_seen": 48, "undecodable": 0, "seconds": 61.0, "peak_memory_gib": 0.5,
}  # fmt: skip


def test_data_are_identified_by_content(tmp_path):
    """The same files elsewhere have the same fingerprint; a changed byte gives another."""
    recipe = load_recipe(None, [f"data.path={SAMPLE}"])
    first = manifest.begin(recipe, tmp_path, Accelerator(cpu=True), 10_000)
    for file in SAMPLE.glob("*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    again = manifest.begin(load_recipe(None, [f"data.path={tmp_path}"]), tmp_path, Accelerator(cpu=True), 10_000)
    assert first["data"]["fingerprint"] == again["data"]["fingerprint"] and first["data"]["path"] == "fashion_mnist"
    shard = next(file for file in sorted(tmp_path.glob("*.parquet")) if "train" in file.name)
    shard.write_bytes(shard.read_bytes()[:-9] + b"x" + shard.read_bytes()[-8:])
    changed = manifest.begin(load_recipe(None, [f"data.path={tmp_path}"]), tmp_path, Accelerator(cpu=True), 10_000)
    assert changed["data"]["fingerprint"] != first["data"]["fingerprint"]
    assert {"torch", "transformers", "hssl-hf"} <= first["versions"].keys() and first["hardware"]["cores"] >= 1


@pytest.mark.parametrize(
    ("path", "public"),
    [
        ("user/images", "user/images"),
        ("/home/alice/secret/photos", "photos"),
        ("~/photos", "photos"),
        ("../data/photos", "photos"),
        ("https://alice:word@host/train-{000..127}.tar?token=abc#x", "https://host/train-{000..127}.tar"),
        (None, None),
    ],
)
def test_paths_lose_private_parts(path, public):
    assert manifest.public_path(path) == public


def test_public_recipe_has_no_folders(tmp_path):
    recipe = load_recipe(None, [f"data.path={tmp_path}", f"probe.path={tmp_path}", f"run.output_dir={tmp_path}/run"])
    assert str(tmp_path.parent) not in json.dumps(manifest.public_recipe(recipe))


def test_run_without_manifest_has_an_empty_one(tmp_path):
    assert manifest.read(tmp_path) == {}
    manifest.write(tmp_path, MANIFEST)
    assert manifest.read(tmp_path) == MANIFEST
