"""Servers on this machine in the place of others, and caches of their own."""

import pytest

from fdjax.checkpoint import fetch as fetching
from tests.convert import servers


@pytest.fixture
def server():
    with servers.serve() as running:
        yield running


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Caches of their own, and no waiting between attempts."""
    monkeypatch.setenv("FDJAX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setattr(fetching.time, "sleep", lambda seconds: None)
    return tmp_path


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """The server, in the place of huggingface.co."""
    from huggingface_hub import constants

    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return server
