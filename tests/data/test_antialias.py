"""Pixels resized without torch are those of torch's kernel, to the bit."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from bottleneck.data import antialias
from bottleneck.data.antialias import resized, suffices

SIZES = [(1, 1), (2, 3), (7, 300), (41, 29), (160, 120), (375, 500), (600, 11), (900, 1000)]
TARGETS = [(1, 1), (3, 2), (29, 41), (64, 64), (256, 341)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_torch(size, channels, interpolation):
    draw = np.random.default_rng(sum(size) + channels)
    noise = draw.integers(0, 256, (*size, channels)).astype(np.uint8)
    extremes = draw.choice([0, 255], (*size, channels)).astype(np.uint8)  # sums leave 0 to 255
    for pixels in (noise, extremes, noise[::-1]):
        batch = torch.from_numpy(pixels.copy())[None].permute(0, 3, 1, 2)
        for target in (*TARGETS, size):
            kernel = torch.nn.functional.interpolate(batch, target, mode=interpolation, antialias=True)
            found = resized(pixels, *target, interpolation)
            np.testing.assert_array_equal(found, kernel[0].permute(1, 2, 0).numpy())


def test_large_images_and_unknown_processors_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(antialias, "_left", [1])
    monkeypatch.setattr(antialias, "vector_units", lambda: ["avx2"])
    assert suffices(1000, 1000)
    assert not suffices(1000, 1001)
    monkeypatch.setattr(antialias, "vector_units", lambda: ["asimd"])
    assert not suffices(10, 10)


FEW_AND_MANY = """
import io, sys
import numpy as np
from PIL import Image
from bottleneck.data import antialias
from bottleneck.data.loader import load_images
from bottleneck.data.preprocess import Preprocess

antialias.vector_units = lambda: ["avx2"]

class Images:
    def read(self, key):
        file = io.BytesIO()
        draw = np.random.default_rng(int(key))
        Image.fromarray(draw.integers(0, 256, (40, 50, 3)).astype(np.uint8)).save(file, "PNG")
        return file.getvalue()
    def stat(self, key):
        return (0, 0, 0, 0)

preprocess = Preprocess(32, 36, "bicubic", (0.5,) * 3, (0.5,) * 3)
keys = [str(number) for number in range(33)]
few = [image.pixels for image in load_images(Images(), keys[:32], preprocess, workers=2)]
assert "torch" not in sys.modules
assert antialias._left == [0]
(one,) = load_images(Images(), keys[32:], preprocess, workers=2)  # in small batches
assert "torch" in sys.modules
many = [image.pixels for image in load_images(Images(), keys, preprocess, workers=2)]
assert np.array_equal([*few, one.pixels], many)
"""

MANY = (
    FEW_AND_MANY.partition("few = ")[0]
    + """
for image in load_images(Images(), keys, preprocess, workers=2):
    assert "torch" in sys.modules
assert antialias._left == [0]
"""
)


@pytest.mark.parametrize("code", [FEW_AND_MANY, MANY])
def test_few_images_need_no_torch_and_many_take_it(code):
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
