"""Images whose nearness to ImageNet's photographs is known, to calibrate a scale of similarity with.

All are made from what scikit-learn ships: two photographs and 1,797 digits of 8 × 8 pixels.

Shapes: n images of an anchor.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from PIL import Image, ImageOps

PER_ANCHOR = 16  # images
TILES = 8  # a side, of the texture-only version
SIDE = 224  # pixels
SMALL = 32  # pixels a side of the small photographs

SIMILAR = ("photographs", "inverted photographs", "grey photographs")
BETWEEN = ("texture of photographs",)
DIFFERENT = ("photographs of 32 pixels", "digits", "noise")


def anchors() -> Iterator[tuple[str, list[Image.Image]]]:
    """Name and n RGB images of every anchor; the same ones always."""
    photographs = _photographs()
    yield "photographs", photographs
    yield "inverted photographs", [ImageOps.invert(image) for image in photographs]
    yield "grey photographs", [image.convert("L").convert("RGB") for image in photographs]
    rng = np.random.default_rng(1)
    yield "texture of photographs", [_shuffled(image, rng) for image in photographs]
    yield "photographs of 32 pixels", [image.resize((SMALL, SMALL)) for image in photographs]
    yield "digits", _digits()
    noise = rng.integers(0, 256, (PER_ANCHOR, SIDE, SIDE, 3), dtype=np.uint8)
    yield "noise", [Image.fromarray(pixels) for pixels in noise]


@cache
def _photographs() -> list[Image.Image]:
    """Squares cut at random from both photographs, 40 to 100 % of their shorter side."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    whole = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    cuts = []
    for number in range(PER_ANCHOR):
        image = whole[number % len(whole)]
        side = int(rng.uniform(0.4, 1.0) * min(image.size))
        left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
        cuts.append(image.crop((left, top, left + side, top + side)))
    return cuts


def _shuffled(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The image's tiles in random order: its texture without its shapes."""
    step = SIDE // TILES
    pixels = np.asarray(image.resize((SIDE, SIDE)))
    tiles = pixels.reshape(TILES, step, TILES, step, 3).swapaxes(1, 2).reshape(-1, step, step, 3)
    tiles = tiles[rng.permutation(len(tiles))]
    return Image.fromarray(tiles.reshape(TILES, TILES, step, step, 3).swapaxes(1, 2).reshape(SIDE, SIDE, 3))


def _digits() -> list[Image.Image]:
    from sklearn.datasets import load_digits

    digits = load_digits().images[:PER_ANCHOR]
    return [
        Image.fromarray(np.round(pixels * (255 / 16)).astype(np.uint8)).convert("RGB") for pixels in digits
    ]
