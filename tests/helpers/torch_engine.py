"""The engine "auto" without a graph for float32: an export to onnxruntime takes seconds for each network."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def torch_computes():
    """Let "auto" compute float32 in torch. An engine that is named is taken, and int8 has its graph."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bottleneck.engines.base._takes_part", lambda runtime, kind: kind != "fp32")
        yield
