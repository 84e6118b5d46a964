"""Augmented views: reproducible, different from each other, and described by a recipe."""

import json

import numpy as np
import pytest
import torchvision
from PIL import Image

from bottleneck.data.augment import ViewRecipe
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import ArtifactError, BottleneckError

DIGEST = bytes(range(32))


def preprocess(mode="RGB", size=16):
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    return Preprocess(size, size, "bicubic", (0.5,) * channels, (0.5,) * channels, mode=mode)


def picture(mode="RGB", width=40, height=30):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (height, width, 4), np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("RGBA", 4)])
def test_shape_and_type(mode, channels):
    views = ViewRecipe(count=3).apply(picture(mode), preprocess(mode), DIGEST)
    assert views.shape == (3, 16, 16, channels)
    assert views.dtype == np.uint8


def test_views_repeat_and_differ_by_seed_digest_and_number():
    image = picture()
    views = ViewRecipe(count=4, seed=5).apply(image, preprocess(), DIGEST)
    assert np.array_equal(views, ViewRecipe(count=4, seed=5).apply(image, preprocess(), DIGEST))
    assert len({view.tobytes() for view in views}) == 4
    assert not np.array_equal(views, ViewRecipe(count=4, seed=6).apply(image, preprocess(), DIGEST))
    assert not np.array_equal(views, ViewRecipe(count=4, seed=5).apply(image, preprocess(), bytes(32)))


def test_more_views_leave_the_first_as_they_were():
    few, more = (ViewRecipe(count=count).apply(picture(), preprocess(), DIGEST) for count in (2, 5))
    assert np.array_equal(few, more[:2])


def still(**changes):
    """A recipe that changes nothing but what is named."""
    settings = {"count": 64, "scale": (1, 1), "ratio": (1, 1), "flip": 0}
    settings |= {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    return ViewRecipe(**(settings | changes))


def test_a_recipe_that_changes_nothing_resizes():
    image = picture(width=16, height=16)
    views = still().apply(image, preprocess(), DIGEST)
    assert np.abs(views.astype(int) - np.asarray(image)).max() <= 1


def test_half_of_the_views_are_flipped():
    image = Image.new("L", (16, 16))
    image.paste(255, (0, 0, 8, 16))
    views = still(flip=0.5).apply(image, preprocess("L"), DIGEST)
    left_is_bright = (views[:, :, 0, 0] > 128).all(axis=1)
    right_is_bright = (views[:, :, -1, 0] > 128).all(axis=1)
    assert (left_is_bright ^ right_is_bright).all()
    assert 15 <= left_is_bright.sum() <= 49


def test_crops_have_the_area_and_shape_asked_for():
    """Coordinates as colours: what a view shows says where it was cut."""
    y, x = np.mgrid[0:200, 0:200].astype(np.uint8)
    image = Image.fromarray(np.stack([x, y, y], axis=-1))
    recipe = still(scale=(0.25, 0.5), ratio=(0.5, 2.0))
    views = recipe.apply(image, preprocess(), DIGEST).astype(float)
    width = np.ptp(views[..., 0], axis=(1, 2)) * 16 / 15
    height = np.ptp(views[..., 1], axis=(1, 2)) * 16 / 15
    area = width * height / 200**2
    assert 0.22 < area.min() < 0.3
    assert 0.42 < area.max() < 0.55
    assert 0.4 < (width / height).min() < 0.75
    assert 1.3 < (width / height).max() < 2.3


def test_jitter_changes_colours_within_its_bounds():
    image = Image.new("RGB", (8, 8), (100, 100, 100))
    shades = still(brightness=0.4).apply(image, preprocess(size=8), DIGEST)[:, 0, 0, 0]
    assert 59 <= shades.min() < 75
    assert 125 < shades.max() <= 141


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_odd_images_have_views_too(size):
    image = Image.new("RGB", size, "red")
    assert ViewRecipe(count=2).apply(image, preprocess(), DIGEST).shape == (2, 16, 16, 3)


def test_json_brings_back_the_same_recipe():
    recipe = ViewRecipe(count=3, seed=9, scale=(0.2, 0.9))
    record = json.loads(json.dumps(recipe.to_json()))
    assert ViewRecipe.from_json(record) == recipe
    assert record["torchvision"] == torchvision.__version__.split("+")[0]


@pytest.mark.parametrize(
    "change",
    [{"count": 0}, {"count": "3"}, {"scale": [0.5]}, {"scale": 1}, {"hue": 2}, {"flip": "x"}, {"more": 1}],
)
def test_a_recipe_that_is_none_is_refused(change):
    with pytest.raises(ArtifactError):
        ViewRecipe.from_json(ViewRecipe(count=2).to_json() | change)


@pytest.mark.parametrize(
    "change",
    [
        {"count": 0},
        {"count": 10**6},
        {"seed": -1},
        {"scale": (0.9, 0.1)},
        {"ratio": (0, 1)},
        {"flip": 2},
        {"brightness": -1},
    ],
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(BottleneckError):
        ViewRecipe(**({"count": 2} | change))
