"""Resize and crop: torchvision's geometry, overrides that can be repeated, and one recipe in JSON."""

import json

import numpy as np
import pytest
from PIL import Image

from bottleneck.data.decode import as_array, fast_pixels
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import ArtifactError, BottleneckError

PREPROCESS = Preprocess(32, 36, "bicubic", (0.4, 0.5, 0.6), (0.5,) * 3)


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
