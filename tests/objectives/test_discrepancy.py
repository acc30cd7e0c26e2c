import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hssl_hf.evaluation.metrics import Discrepancy
from hssl_hf.objectives.discrepancy import discrepancy


@given(st.integers(0, 99), st.floats(0.05, 5))
def test_is_zero_for_equals_and_positive_otherwise(seed, temperature):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 6, 9, generator=generator)
    assert discrepancy(a, a, temperature) == 0
    assert discrepancy(a, a + 3.0, temperature) == pytest.approx(0, abs=1e-5)
    assert discrepancy(a, b, temperature) > 0


def test_equals_the_formula_by_hand():
    """KL((3/4, 1/4) || (1/2, 1/2)) = 3/4 ln 3/2 + 1/4 ln 1/2 = 0.130812 nats."""
    base, auxiliary = torch.tensor([[3.0, 1.0]]).log(), torch.tensor([[1.0, 1.0]]).log()
    assert discrepancy(base, auxiliary).item() == pytest.approx(0.130812, abs=1e-6)
    assert discrepancy(auxiliary, base).item() == pytest.approx(0.143841, abs=1e-6), "the base comes first"


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one shape"):
        discrepancy(torch.zeros(2, 3), torch.zeros(3, 2))


def test_metric_equals_the_function_and_can_center():
    a, b = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0))
    metric = Discrepancy(keep_in_memory=True)
    plain = metric.compute(predictions=a.numpy(), references=b.numpy(), temperature=0.3, center=False)["D"]
    assert plain == pytest.approx(discrepancy(a, b, 0.3).item(), rel=1e-6)
    shifted = metric.compute(predictions=a.numpy(), references=(a + torch.arange(9.0)).numpy(), temperature=0.3)["D"]
    assert shifted == pytest.approx(0, abs=1e-5), "what all images have in common is taken away"
