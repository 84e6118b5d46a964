"""Folders for stored graphs."""

import pytest


@pytest.fixture
def graphs(tmp_path, monkeypatch):
    """An empty folder for stored graphs."""
    monkeypatch.setenv("BOTTLENECK_CACHE", str(tmp_path / "user"))
    return tmp_path / "user" / "graphs"


@pytest.fixture(scope="module")
def shared_graphs(tmp_path_factory):
    """A folder for stored graphs that the tests of a module share, as an export takes seconds."""
    folder = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOTTLENECK_CACHE", str(folder))
        yield folder / "graphs"
