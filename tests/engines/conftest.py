"""Folders for stored graphs; each network of these tests is exported once."""

import hashlib

import pytest

from bottleneck.engines import reference
from bottleneck.files import write_whole


@pytest.fixture(scope="package", autouse=True)
def exported_once(run_folder):
    """Let a network that was exported before give the same graph: an export takes seconds.

    A network is known by its class, its weights and the shape of its images.
    """
    export = reference.export_graph

    def exported(extractor, example):
        digest = hashlib.sha256(repr((type(extractor).__qualname__, example.shape[1:])).encode())
        for values in extractor.state_dict().values():
            digest.update(values.numpy().tobytes())
        file = run_folder / "exports" / digest.hexdigest()
        if not file.exists():
            write_whole(file, export(extractor, example))
        return file.read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "export_graph", exported)
        yield


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
