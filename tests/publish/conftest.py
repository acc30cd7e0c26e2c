"""Fixtures of the tests that publish: a model that is staged for a push, and one that has learned."""

import pytest
import torch

from hssl_hf.publish import parity
from hssl_hf.publish.export import CardContext
from hssl_hf.publish.hub import stage
from tests.conftest import tiny_model, tiny_views


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """A tiny model, staged once; the comparison in a fresh process has tests of its own."""
    patch = pytest.MonkeyPatch()
    patch.setattr(parity, "compare", lambda *_, **__: {"pooler_output": 1e-7})
    context = CardContext({"recipe": {"seed": 0}}, repository="user/name")
    yield stage(tiny_model(), tmp_path_factory.mktemp("push"), context=context)
    patch.undo()


@pytest.fixture
def trained():
    """A model whose student and teacher differ after one step."""
    model = tiny_model()
    model(**tiny_views()).loss.backward()
    torch.optim.SGD(model.student.parameters(), lr=1.0).step()
    model.update_teacher(0.7)
    return model
