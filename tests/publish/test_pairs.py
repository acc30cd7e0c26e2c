"""Every base with every auxiliary head: built, trained, exported, and loaded by AutoModel."""

import pytest
import torch
from transformers import AutoModel

from hssl_hf.auxiliary import BLOCKS
from hssl_hf.publish.export import export_backbone
from tests.conftest import TINY_VIT, tiny_model, tiny_views

BASES = {  # architecture -> timm model, its arguments, image size
    "vit": ("vit_tiny_patch16_224", TINY_VIT, 32),
    "resnet": ("resnet10t", {"channels": (16, 32, 32, 64)}, 64),
    "swin": ("swin_tiny_patch4_window7_224", {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}, 64),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (16, 32, 32, 64)}, 64),
    "poolformer": ("poolformer_s12", {}, 64),
    "resmlp": ("resmlp_12_224", {}, 64),
}

PAIRS = [  # all heads on a vision transformer and a ResNet, one on each of the others; the rest is slow
    pytest.param(base, family, marks=[] if base in ("vit", "resnet") or family == "convnext" else [pytest.mark.slow])
    for base in BASES
    for family in BLOCKS
]


@pytest.mark.parametrize(("base", "family"), PAIRS)
def test_pair_trains_and_its_base_is_loaded_without_this_package(base, family, tmp_path, unchecked):
    """Compared in this process; test_export.py compares one model per architecture in a fresh process."""
    name, kwargs, size = BASES[base]
    model = tiny_model(
        backbone=name, backbone_kwargs=kwargs, image_size=size, auxiliary=family, auxiliary_depth=1, objective="dino"
    ).train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.student.parameters(), lr=0.01)
    for seed in range(2):
        model(**tiny_views(seed, local=0, size=size, grid=None)).loss.backward()
        assert all(p.grad is None for p in model.teacher.parameters())
        optimizer.step()
        optimizer.zero_grad()
        model.update_teacher(0.9)
    assert not [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    folder = export_backbone(model, tmp_path / "export")
    stock, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()) and not [name for name in stock.state_dict() if "auxiliary" in name]
    pixels = torch.randn(3, 3, size, size)
    with torch.no_grad():
        actual, expected = stock.eval()(pixels).pooler_output.flatten(1), model.eval().encode(pixels).cls
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)
