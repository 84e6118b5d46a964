"""What every test shares: the `--long` flag, and one thread per library so that runs repeat."""

import os

import pytest

pytest_plugins = ["tests.helpers.fitted_cache"]

os.environ.setdefault("MPLBACKEND", "agg")


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the fault tests in their long form")


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
