"""Every engine gives the rows of eager float32, or is refused."""

import numpy as np
import pytest
import torch
from torch import nn

from bottleneck.engines.base import build_engine


class TinyExtractor(nn.Module):
    """Stands for `Backbone.extractor`: normalisation inside, a map node and a vector node."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6())
        self.body = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.register_buffer("mean", torch.tensor([124.0, 116.0, 104.0]))
        self.eval()

    def forward(self, pixels):
        x = ((pixels.float() - self.mean) / 58.0).permute(0, 3, 1, 2)
        x = self.stem(x)
        return x, self.body(x).mean((2, 3))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BOTTLENECK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)


def eager(pixels, seed=0):
    with torch.inference_mode():
        return tuple(rows.numpy() for rows in TinyExtractor(seed)(torch.from_numpy(pixels)))


@pytest.mark.parametrize("name", ["onnxruntime", "torch"])
def test_rows_equal_eager(name, pixels):
    engine = build_engine(TinyExtractor, pixels, key="k", engine=name, device="cpu")
    assert (engine.name, engine.precision, engine.device) == (name, "fp32", "cpu")
    for rows, reference in zip(engine(pixels), eager(pixels), strict=True):
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows, reference, rtol=1e-4, atol=1e-5)
