"""The solver's tests run with both libraries that it computes with."""

import pytest

from bottleneck.heads.solver import arrays


@pytest.fixture(params=["numpy", "torch"], autouse=True)
def place(request, monkeypatch):
    """Where the solver's arrays are."""
    if request.param == "torch":
        monkeypatch.setattr(arrays, "TORCH_FROM", 0)
        monkeypatch.setattr(arrays, "numpy_is_faster", lambda: False)
    return arrays.Place(request.param)
