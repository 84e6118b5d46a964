"""One Ray cluster for all tests of extraction: it takes seconds to start and to end."""

import pytest


@pytest.fixture(scope="session")
def started(tmp_path_factory):
    """A cluster of two nodes on this machine, with faults that a test switches on."""
    pytest.importorskip("ray", reason="needs the extra ray")
    from bottleneck.extraction import ray_cluster
    from tests.helpers.ray_nodes import Nodes

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TMPDIR", ray_cluster.short_folder() or "/tmp")
        nodes = Nodes(tmp_path_factory.mktemp("faults"))
        yield nodes
        nodes.cluster.shutdown()


@pytest.fixture
def nodes(started):
    """The cluster, which is repaired after each test."""
    yield started
    started.repair()
