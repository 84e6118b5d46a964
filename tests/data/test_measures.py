"""What is measured of the pixels of an image, on images whose answers are known."""

import numpy as np
import pytest

from bottleneck.data.measures import measure
from bottleneck.data.preprocess import Preprocess
from bottleneck.names import MEASURES

PLAIN = Preprocess(64, 64, "bilinear", (0.5,) * 3, (0.5,) * 3)


def measured(pixels, size=(64, 64)):
    (found,) = measure(np.asarray(pixels, np.uint8)[None], np.array([size]), PLAIN).tolist()
    return dict(zip(MEASURES, found, strict=True))


def test_a_blank_image_has_no_information_and_no_contrast():
    found = measured(np.full((64, 64, 3), 40), size=(640, 480))
    assert (found["width"], found["height"]) == (640, 480)
    assert found["low"] == found["high"] == 40
    assert found["entropy"] == found["contrast"] == found["sharpness"] == 0


def test_percentiles_and_entropy_are_counted_by_hand():
    pixels = np.zeros((64, 64, 1))
    pixels[:, ::2] = 200  # half of all
    found = measured(pixels)
    assert (found["low"], found["high"], found["entropy"]) == (0, 200, 1)
    assert found["contrast"] == 100**2


def test_a_percentile_is_the_first_level_that_has_its_share_exactly():
    found = measured(np.arange(200)[None, :, None], size=(200, 1))  # a pixel of each level
    assert (found["low"], found["high"]) == (9, 197)  # the 10th and the 198th of 200


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_noise_is_sharp_and_waves_are_not(channels):
    draw = np.random.default_rng(0)
    noise = np.repeat(draw.integers(0, 256, (64, 64, 1)), channels, axis=2)
    waves = np.repeat(128 + 100 * np.sin(np.arange(64) / 8)[:, None, None] * np.ones((1, 64, 1)), channels, 2)
    assert measured(noise)["sharpness"] == pytest.approx(6, rel=0.2)  # 1 + 4 + 1 variances
    assert measured(waves)["sharpness"] < 0.01


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("side", [30, 64])
def test_rows_and_columns_are_measured_alike(side, channels):
    pixels = np.random.default_rng(1).integers(0, 256, (side, side, channels))
    pixels[::2] //= 4  # rows differ more than columns do
    found, turned = measured(pixels), measured(pixels.swapaxes(0, 1))
    bends = [one["sharpness"] * one["contrast"] for one in (found, turned)]
    assert bends[0] == pytest.approx(bends[1], rel=1e-5)


def test_an_enlarged_image_is_as_sharp_as_it_was():
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 1))
    enlarged = noise.repeat(4, axis=0).repeat(4, axis=1)
    assert measured(enlarged, size=(16, 16))["sharpness"] == pytest.approx(6, rel=0.5)
    assert measured(enlarged)["sharpness"] < 3


@pytest.mark.parametrize("side", [1, 2, 3])
def test_the_smallest_images_are_measured(side):
    black = np.zeros((2, side, side, 3), np.uint8)
    assert np.isfinite(measure(black, np.array([(side, side)] * 2), PLAIN)).all()


def test_an_image_does_not_depend_on_its_neighbours():
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (5, 64, 64, 3)).astype(np.uint8)
    pixels[1] = 7  # without contrast
    sizes = np.array([(640, 480), (64, 64), (16, 16), (20, 500), (1, 1)])
    together = measure(pixels, sizes, PLAIN)
    for image, size, found in zip(pixels, sizes, together, strict=True):
        np.testing.assert_array_equal(measure(image[None], size[None], PLAIN)[0], found)
