import logging

import pytest
import torch

from hssl_hf.config.recipe import load_recipe
from hssl_hf.pretraining.setup import require_trackers, with_supported_precision
from tests.faults import refused


@pytest.fixture
def machine(monkeypatch):
    """Pretend that bf16 is supported by the processor, or that there is an accelerator."""

    def pretend(bf16: bool, accelerator: bool = False) -> None:
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bf16)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
        monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)

    return pretend


def test_a_processor_without_bf16_trains_in_fp32_and_warns(machine, caplog):
    machine(bf16=False)
    recipe = load_recipe(None)
    assert recipe.optim.mixed_precision == "bf16"
    with caplog.at_level(logging.WARNING):
        changed = with_supported_precision(recipe)
    assert changed.optim.mixed_precision == "no" and "training in fp32" in caplog.text
    assert with_supported_precision(changed) == changed and len(caplog.records) == 1


@pytest.mark.parametrize(("bf16", "accelerator"), [(True, False), (False, True)])
def test_other_machines_keep_bf16(machine, bf16, accelerator):
    machine(bf16, accelerator)
    assert with_supported_precision(load_recipe(None)).optim.mixed_precision == "bf16"


def test_an_accelerator_that_is_not_to_be_used_does_not_count(machine, monkeypatch):
    machine(bf16=False, accelerator=True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert with_supported_precision(load_recipe(None)).optim.mixed_precision == "no"


@pytest.mark.fault("missing extras")
@pytest.mark.parametrize(
    ("name", "hint"), [("comet_ml", "pip install comet-ml"), ("trackio", "pip install 'hssl-hf[trackers]'")]
)
def test_the_hint_names_the_package_of_the_tracker(monkeypatch, name, hint):
    monkeypatch.setattr("hssl_hf.pretraining.setup.get_available_trackers", list)
    with refused("run.report_to", name, hint):
        require_trackers((name,))
