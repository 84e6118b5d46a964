"""Fixtures of the store's tests: fast writing, a path, a small world of images."""

import pytest


@pytest.fixture(autouse=True)
def _no_sync(request, monkeypatch):
    """No test stops the machine itself, so what fsync buys cannot show; the fault scripts keep it."""
    if request.module.__name__.rpartition(".")[2] != "test_faults":
        monkeypatch.setattr("bottleneck.files.sync", lambda descriptor: None)
        monkeypatch.setattr("bottleneck.store.parts.sync", lambda descriptor: None)


@pytest.fixture
def path(tmp_path):
    """Where a test's cache is to be."""
    return tmp_path / "cache.h5"


@pytest.fixture
def world():
    """Images to extract, a copy and a failure among them."""
    from tests.helpers.world import world_of

    return world_of(9)
