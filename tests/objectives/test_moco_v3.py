import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hssl_hf.objectives.moco_v3 import MoCoV3
from tests.conftest import tiny_config, tiny_model, tiny_views


def test_equals_official_moco_v3(golden):
    """Official contrastive loss, T = .2 with the factor 2T, on 8 queries and keys of 16 dimensions."""
    arrays = golden("base_methods")
    objective = MoCoV3(tiny_config(objective="moco_v3", contrastive_temperature=float(arrays["moco/T"])))
    queries = torch.from_numpy(arrays["moco/q"]).requires_grad_()
    loss = objective._contrast(queries, F.normalize(torch.from_numpy(arrays["moco/k"]), dim=1))
    np.testing.assert_allclose(loss.item(), arrays["moco/loss"], rtol=1e-5)
    np.testing.assert_allclose(torch.autograd.grad(loss, queries)[0], arrays["moco/grad"], atol=1e-6)


def test_matching_keys_cost_less_than_shuffled_ones():
    objective = MoCoV3(tiny_config(objective="moco_v3"))
    keys = F.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    assert objective._contrast(keys, keys) < objective._contrast(keys, keys.roll(1, 0))


def test_teacher_has_no_predictor():
    model = tiny_model(objective="moco_v3")
    assert len(model.student.heads.predictors) == 2 and len(model.teacher.heads.predictors) == 0


def test_local_views_are_refused():
    with pytest.raises(ValueError, match="takes no local views, got 3"):
        tiny_model(objective="moco_v3")(**tiny_views(grid=None))
