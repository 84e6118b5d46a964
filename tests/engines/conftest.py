"""Folders for stored graphs; each network of these tests is exported once."""

import hashlib

import pytest
import torch

from bottleneck.engines import reference
from bottleneck.files import write_whole


@pytest.fixture(scope="module", autouse=True)
def exported_once(run_folder):
    """Let a network that was exported before give the same graph: an export takes seconds.

    A network is known by its class, its weights, and the shapes and rows of its nodes for the example. The
    scope is the module: one of the package would last until the end of the run, for all other tests too.
    """
    export = reference.export_graph

    def exported(extractor, example):
        digest = hashlib.sha256(type(extractor).__qualname__.encode())
        with torch.inference_mode():
            rows = extractor(torch.from_numpy(example))
        for values in (*extractor.state_dict().values(), *rows):
            digest.update(repr(tuple(values.shape)).encode() + values.numpy().tobytes())
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
