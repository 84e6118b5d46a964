"""Flags of the test suite: `--long` and `--random`.

Hypothesis draws the same examples in every run, so that a suite that passed once passes again.
With `--random` it draws new ones, to search for defects.
"""

import hashlib
import os

import hypothesis
import pytest

pytest_plugins = ["tests.helpers.fitted_cache"]

ALL_CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()

os.environ.setdefault("MPLBACKEND", "agg")
# Read when torch is imported: threads that wait sleep. Where several processes share the cores, as under
# `-n auto`, threads that spin instead make the training tests several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# No deadline: a test asserts no time.
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
hypothesis.settings.register_profile("random", derandomize=False, deadline=None, print_blob=True)


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the fault tests in their long form")
    parser.addoption("--random", action="store_true", help="let hypothesis draw new examples in each run")


def pytest_configure(config):
    hypothesis.settings.load_profile("random" if config.getoption("--random") else "repeatable")
    if ALL_CORES and (worker := getattr(config, "workerinput", None)):
        # Each process of `-n` has cores of its own: threads of two on one core take a quarter more of it.
        cores, number = sorted(ALL_CORES), int(worker["workerid"].removeprefix("gw"))
        os.sched_setaffinity(0, cores[number :: worker["workercount"]] or {cores[number % len(cores)]})


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give all tests of a module to one process, and all of Ray: what their fixtures make is made once."""
    if config.getoption("dist") != "load":  # which `-n` alone sets
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            module = nodeid.partition("::")[0]
            return "ray" if "/test_ray" in module else module

    return ByModule(config, log)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A folder of this run of the suite, which all its processes share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(autouse=True, scope="session")
def user_folder(run_folder):
    """The user's folder is one of the run: a graph is exported once for all its processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOTTLENECK_CACHE", str(run_folder / "user"))
        yield


@pytest.fixture(autouse=True, scope="session")
def exported_once(run_folder):
    """Let a network that was exported before give the same graph: an export takes seconds.

    It is the same by its class, its weights, and the rows of all its nodes for the example.
    """
    from bottleneck.engines import reference
    from bottleneck.files import write_whole

    export = reference.export_graph

    def exported(extractor, example):
        import torch

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


@pytest.fixture(autouse=True, scope="session")
def trusted():
    """Let caches name images of other temporary folders."""
    from bottleneck.remote.urls import allow

    with allow(local=True):
        yield


@pytest.fixture(autouse=True)
def strangers(request):
    """Take that trust away from the tests of trust itself, which are marked `strangers`."""
    from bottleneck.remote.urls import allow

    if request.node.get_closest_marker("strangers") is None:
        yield
    else:
        with allow(local=False):
            yield


@pytest.fixture
def all_cores():
    """Let a test of threads use all cores, which processes of `-n` share otherwise."""
    if not ALL_CORES:
        yield
        return
    share = os.sched_getaffinity(0)
    os.sched_setaffinity(0, ALL_CORES)
    yield
    os.sched_setaffinity(0, share)


@pytest.fixture(scope="session")
def long(request):
    """True where the long form of a fault test was asked for."""
    return request.config.getoption("--long")


def pytest_collection_modifyitems(config, items):
    cuda = [item for item in items if item.get_closest_marker("cuda")]
    if cuda:
        import torch

        if not torch.cuda.is_available():
            skip = pytest.mark.skip(reason="needs a CUDA device")
            for item in cuda:
                item.add_marker(skip)
    if not config.getoption("--long"):
        skip = pytest.mark.skip(reason="long form: run with --long")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(skip)
