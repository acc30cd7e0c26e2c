"""A method is its two files: the registry finds it, and everything that knows methods by name reads it from there."""

import subprocess
import sys

import pytest
from transformers import AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from hssl_hf.auxiliary import BLOCKS
from hssl_hf.models.auto import configuration_classes
from hssl_hf.models.configuration_two_branch import FAMILIES, NAMES
from tests.conftest import SAMPLE

CONFIGURATION = """
from hssl_hf.models.configuration_base import PreTrainingConfig


class RotationConfig(PreTrainingConfig):
    model_type = "rotation"
    citation = "@inproceedings{gidaris2018rotation}"

    def describe(self):
        return "RotNet", "prediction of rotations (arXiv 1803.07728)"

    def described_in(self):
        return ["engine/optim"]
"""
MODELING = """
import torch
from transformers.utils import ModelOutput

from hssl_hf.models.configuration_rotation import RotationConfig
from hssl_hf.models.modeling_student_teacher import StudentTeacherPreTrainedModel
from hssl_hf.modules.backbone import Backbone


class RotationForPreTraining(StudentTeacherPreTrainedModel):
    config_class = RotationConfig
    num_views, masked_views, default_network = 1, 0, "student"

    def __init__(self, config):
        super().__init__(config)
        self.student = torch.nn.Module()
        self.student.base = Backbone(config.backbone, config.image_size, config.backbone_kwargs)
        self.student.classifier = torch.nn.Linear(self.student.base.width, 4)
        self.teacher = None
        self._finish_init()

    def forward(self, pixel_values):
        turned = torch.cat([pixel_values[0].rot90(k, (-2, -1)) for k in range(4)])
        logits = self.student.classifier(self.student.base(turned)[0].cls)
        labels = torch.arange(4).repeat_interleave(pixel_values.shape[1])
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return ModelOutput(loss=loss, losses={"rotation": loss})
"""
PROGRAM = """
import sys, warnings
from pathlib import Path
from hssl_hf import models
models.__path__.append(sys.argv.pop(1))
warnings.simplefilter("ignore")
from hssl_hf.cli.programs import launch, pretrain
assert launch(pretrain) == 0
import hssl_hf
from transformers import AutoModelForPreTraining
assert hssl_hf.RotationForPreTraining.config_class is hssl_hf.RotationConfig
"""


RECIPE = """
model:
  model_type: rotation
  backbone: vit_tiny_patch16_224
  backbone_kwargs: {{patch_size: 14, embed_dim: 32, depth: 1, num_heads: 1}}
views: {{global_crop_size: 28, num_local_crops: 0, global_crop_blur: [0.0], global_crop_solarize: [0.0]}}
data: {{path: {sample}, num_workers: 0}}
optim: {{epochs: 0.004, batch_size: 16, mixed_precision: no, warmup_epochs: 0}}
run: {{output_dir: {folder}/run, logging_steps: 1}}
"""


@pytest.mark.slow
def test_a_method_of_two_files_trains_and_is_exported(tmp_path):
    """Nothing else is touched: recipe, Auto classes, training, export, card and public names know it."""
    (tmp_path / "configuration_rotation.py").write_text(CONFIGURATION)
    (tmp_path / "modeling_rotation.py").write_text(MODELING)
    recipe = tmp_path / "rotation.yaml"
    recipe.write_text(RECIPE.format(sample=SAMPLE, folder=tmp_path))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "log.jsonl").read_text().count('"rotation"') == 2
    card = (tmp_path / "run" / "export" / "README.md").read_text()
    assert "by RotNet" in card and "prediction of rotations (arXiv 1803.07728)" in card and "gidaris2018rotation" in card
    assert AutoModel.from_pretrained(tmp_path / "run" / "export").config.model_type == "vit"


def test_every_method_has_what_cards_and_reports_need():
    for name, config in configuration_classes().items():
        values = config()
        assert values.citation.startswith("@") and len(values.describe()) == 2 and values.described_in(), name
        assert {"backbone", "image_size", "license"} <= set(config.declarations())


def test_no_model_of_transformers_has_the_name_of_a_method():
    """Else loading one of them would give the other."""
    assert not configuration_classes().keys() & CONFIG_MAPPING_NAMES.keys()


def test_families_of_heads_are_those_that_exist():
    assert set(FAMILIES) == set(BLOCKS) == set(NAMES)
