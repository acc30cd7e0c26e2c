"""Fixtures of the tests that publish: a Hub on localhost, a model that is staged for a push, and one that has learned."""

from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants

from hssl_hf.publish import hub as hub_module
from hssl_hf.publish import parity
from hssl_hf.publish.export import CardContext
from hssl_hf.publish.hub import stage
from tests.conftest import tiny_model, tiny_views
from tests.hub_server.server import HubServer


@pytest.fixture
def hub(monkeypatch):
    with HubServer() as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(hub_module, "FIRST_PAUSE", 0.0)
        monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))
        yield server


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
