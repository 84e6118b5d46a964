"""Resize and crop: torchvision's geometry, one recipe in JSON. Views: repeated, different, with a recipe."""

import json
import sys

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from bottleneck.data.modes import as_array
from bottleneck.data.preprocess import Preprocess, ViewRecipe
from bottleneck.data.resize import fast_pixels
from bottleneck.errors import ArtifactError, BottleneckError

PREPROCESS = Preprocess(32, 36, "bicubic", (0.4, 0.5, 0.6), (0.5,) * 3)
DIGEST = bytes(range(32))


def smooth(width, height, seed=0):
    """A photograph-like RGB image: low frequencies and a little noise."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8)).resize((width, height), 3)
    noise = random.integers(-6, 7, (height, width, 3))
    return Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (37, 36), (36, 37), (5, 7), (101, 77), (1, 1)])
def test_the_geometry_is_torchvisions(size):
    from torchvision import transforms

    image = smooth(*size)
    reference = transforms.Compose(
        [transforms.Resize(36, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(32)]
    )
    assert np.array_equal(PREPROCESS(image), np.asarray(reference(image)))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(300, 200), (200, 300), (33, 31), (7, 5), (1, 1), (250, 33), (2000, 1500)])
@pytest.mark.parametrize("crop", [None, "squash", 1.0])
def test_the_fast_resize_agrees_with_pillow(size, interpolation, crop):
    preprocess = Preprocess(32, 36, interpolation, (0.5,) * 3, (0.5,) * 3).override(crop=crop)
    image = smooth(*size)
    difference = np.abs(fast_pixels(as_array(image), preprocess).astype(int) - preprocess(image))
    assert difference.max() <= 2
    assert difference.mean() <= 0.05


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_an_image_of_the_size_is_only_cut(interpolation, monkeypatch):
    preprocess = Preprocess(32, 36, interpolation, (0.5,) * 3, (0.5,) * 3)
    pixels = as_array(smooth(47, 36))
    batch = torch.from_numpy(pixels.copy())[None].permute(0, 3, 1, 2)
    kernel = torch.nn.functional.interpolate(batch, (36, 47), mode=interpolation, antialias=True)
    monkeypatch.setitem(sys.modules, "torch", None)  # cannot be imported
    cut = fast_pixels(pixels, preprocess)
    assert not np.shares_memory(cut, pixels)
    assert np.array_equal(cut, kernel[0].permute(1, 2, 0).numpy()[2:34, 8:40])


def test_grey_has_one_channel():
    preprocess = Preprocess(32, 36, "bicubic", (0.5,), (0.5,), mode="L")
    image = smooth(90, 60).convert("L")
    assert preprocess(image).shape == (32, 32, 1)
    assert np.abs(fast_pixels(as_array(image), preprocess).astype(int) - preprocess(image)).max() <= 2


def test_alpha_is_resized_without_bleeding():
    """Clear pixels have no colour to give to their neighbours."""
    preprocess = Preprocess(4, 4, "bilinear", (0.5,) * 4, (0.5,) * 4, mode="RGBA")
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 8, 3))
    pixels = fast_pixels(as_array(image), preprocess)
    seen = pixels[pixels[..., 3] > 8]
    assert (seen[:, 0] < 4).all()


def test_a_strip_is_cut_as_if_it_had_been_resized_whole():
    image = smooth(400, 40)
    whole = image.resize((360, 36), Image.Resampling.BICUBIC).crop((164, 2, 196, 34))
    assert np.abs(PREPROCESS(image).astype(int) - np.asarray(whole)).max() <= 2
    assert np.array_equal(fast_pixels(as_array(image), PREPROCESS), PREPROCESS(image))


def test_elongated_images_take_no_elongated_memory():
    image = Image.new("RGB", (60000, 2), "red")
    preprocess = Preprocess(224, 8192, "bicubic", (0.5,) * 3, (0.5,) * 3)  # resized whole: 6 TB
    assert (fast_pixels(as_array(image), preprocess) == (255, 0, 0)).all()


def test_squashing_keeps_the_borders():
    image = Image.new("RGB", (90, 30), "black")
    image.paste("white", (0, 0, 30, 30))
    pixels = PREPROCESS.override(crop="squash")(image)
    assert pixels[:, 0].min() == 255
    assert pixels[:, -1].max() == 0


def test_overrides_keep_the_published_ratio_and_can_be_repeated():
    published = Preprocess(224, 256, "bicubic", (0.5,) * 3, (0.5,) * 3)
    assert published.override() == published
    for size in (32, 150, 299, 512):
        once = published.override(image_size=size)
        assert (once.size, once.resize) == (size, round(size * 256 / 224))
        assert once.override(image_size=size) == once
    assert published.override(crop=0.5).resize == 448
    squashed = published.override(150, "squash")
    assert (squashed.size, squashed.resize, squashed.squash) == (150, 150, True)
    assert squashed.override(150, "squash") == squashed
    assert not squashed.override(crop=1.0).squash


@pytest.mark.parametrize("crop", [0, -0.5, 1.5, "centre", True, float("nan"), 1e-9])
def test_a_crop_that_cannot_be_is_refused(crop):
    with pytest.raises(BottleneckError):
        PREPROCESS.override(crop=crop)


@pytest.mark.parametrize("size", [0, -1, 10**6])
def test_a_size_that_cannot_be_is_refused(size):
    with pytest.raises(BottleneckError, match=str(size)):
        PREPROCESS.override(image_size=size)


def test_json_brings_back_the_same_recipe():
    assert Preprocess.from_json(json.loads(json.dumps(PREPROCESS.to_json()))) == PREPROCESS


@pytest.mark.parametrize(
    "change",
    [
        {"size": "32"},
        {"size": True},
        {"size": 40},
        {"mean": [0.5]},
        {"mean": 0.5},
        {"mean": ["a", "b", "c"]},
        {"std": [0.5, 0.5, 0]},
        {"std": [0.5, 0.5, float("nan")]},
        {"mode": "CMYK"},
        {"interpolation": "fastest"},
        {"more": 1},
    ],
)
def test_a_recipe_that_is_no_recipe_is_refused(change):
    with pytest.raises(ArtifactError):
        Preprocess.from_json(PREPROCESS.to_json() | change)


@pytest.mark.parametrize("record", [None, [], {}, {"size": 32}])
def test_a_recipe_that_lacks_fields_is_refused(record):
    with pytest.raises(ArtifactError):
        Preprocess.from_json(record)


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


def test_json_brings_back_the_same_recipe_of_views():
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
