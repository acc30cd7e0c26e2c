"""From a dataset on the Hub through training and a push to models that others load, and training that continues from them."""

import json
import os
import subprocess
import sys

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file

from tests.conftest import SAMPLE
from tests.hub_server.server import TOKEN, Fault
from tests.launches import SCRIPT, settings_of
from tests.publish.test_hub import contents


@pytest.mark.slow
def test_round_trip_from_a_dataset_on_the_hub_to_continued_training(hub, tmp_path):
    """Stream from the Hub, pre-train, push, load with AutoModel and timm, continue from heads, and from the base alone."""
    api = HfApi(token=TOKEN)
    api.create_repo("user/images", repo_type="dataset")
    api.upload_folder(
        repo_id="user/images", repo_type="dataset", folder_path=SAMPLE, path_in_repo="data", allow_patterns="*.parquet"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "cache"),
    }

    def run(*command: str) -> str:
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        assert TOKEN not in done.stdout + done.stderr
        return done.stdout

    def pretrain(name: str, *arguments: str) -> None:
        fixed = ["data.path=user/images", "data.images_per_epoch=10000", "probe.path=user/images", "data.num_workers=0"]
        fixed += ["probe.train_images=200", "probe.test_images=50", f"run.output_dir={tmp_path}/{name}"]
        run(str(SCRIPT), *settings_of("hssl"), *fixed, *arguments)

    hub.faults += [Fault("GET", "/datasets/user/images/resolve", status) for status in (503, 429)]
    pretrain("first")
    command = ["-m", "hssl_hf.cli.main", "push", str(tmp_path / "first"), "user/name", "--license", "apache-2.0", "--onnx"]
    killed = subprocess.Popen([sys.executable, *command], env=environment, cwd=tmp_path)
    hub.faults += [Fault("PUT", "/_lfs/", 503), Fault("POST", "/commit/main", lambda: killed.kill() or True)]
    assert killed.wait() < 0 and contents(hub, "main") == {}
    hub.faults += [Fault("POST", "/commit/main", 500), Fault("POST", "/preupload/", "drop")]
    run(*command)
    assert [fault for fault in hub.faults if fault.times] == [], "all faults occurred"
    files = contents(hub, "main")
    assert files.keys() >= {"curves.png", "figures/views.png", "figures/neighbors.png", "onnx/model.onnx"}
    assert ".eval_results/hssl_hf.yaml" in files
    card, manifest = files["README.md"].decode(), json.loads((tmp_path / "first" / "manifest.json").read_text())
    assert manifest["data"]["path"] == "user/images" and manifest["data"]["revision"] in card and "license: apache-2.0" in card
    assert manifest["images_seen"] == 384 and "datasets:\n- user/images" in card
    code = """
import sys; sys.modules["hssl_hf"] = None
import numpy as np, timm, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel
model, report = AutoModel.from_pretrained("user/name", output_loading_info=True)
assert not any(report.values()), report
image = Image.fromarray(np.arange(28 * 28 * 3, dtype=np.uint8).reshape(28, 28, 3))
pixels = AutoImageProcessor.from_pretrained("user/name")(image, return_tensors="pt")["pixel_values"]
other = timm.create_model("hf-hub:user/name@timm", pretrained=True).eval()
torch.testing.assert_close(model.eval()(pixels).pooler_output, other(pixels), atol=1e-5, rtol=1e-4)
"""
    run("-c", code)
    pretrain("second", "init_from=user/name@training", "model.auxiliary_depth=1")
    pretrain("third", "init_from=user/name", "optim.freeze_backbone_epochs=0.0384")
    run("-m", "hssl_hf.cli.main", "push", str(tmp_path / "second"), "user/name")
    assert "base_model: user/name" in contents(hub, "main")["README.md"].decode()
    first, second, third = (
        load_file(max((tmp_path / name / "checkpoints").glob("step-*")) / "model.safetensors")
        for name in ("first", "second", "third")
    )
    base = [name for name in first if name.startswith("teacher.base.")]
    assert all(torch.equal(first[name], third[name]) for name in base), "frozen for the entire run"
    assert not all(torch.equal(first[name], second[name]) for name in base)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "token"]
    assert len(written) > 50 and not [path for path in written if TOKEN.encode() in path.read_bytes()]
