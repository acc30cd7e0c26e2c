"""Fixtures of the tests that publish: a Hub on localhost."""

from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from hssl_hf.publish import hub as hub_module
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
