"""Draw the contributions of places over an image: an explanation and its image → a picture.

An overlay is the image in grey, brighter and yellow where it speaks for the class, darker and blue where it
speaks against it, so that it can be read without colours too. A frame shows what the network sees of the
image.

Shapes: H × W pixels of an image.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from bottleneck.data.decode import EncodedImage
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.source import Source
from bottleneck.models.explanation import Explanation

FOR, AGAINST = (255, 226, 40), (16, 24, 120)
DARKEST, LIGHTEST = 70, 175  # greys of the image below the colours
OPACITY = 0.85  # of the strongest place
FRAME = (255, 255, 255)


def overlay(
    explanation: Explanation, source: Source, preprocess: Preprocess, side: int | None = None
) -> Image.Image:
    """Return the first image of a sample with its contributions over it, RGB, upright and at its own size.

    explanation : as `Explainer.explain` yields it. source, preprocess : that it was made of.
    side : longest side in pixels to which the result is scaled down; its own by default.

    Raises ImageError or OSError where the image cannot be read.
    """
    picture, _ = upright(source, explanation.images[0], preprocess)
    return laid_over(explanation.smooth(), picture, preprocess, side)


def laid_over(
    contributions: np.ndarray, picture: Image.Image, preprocess: Preprocess, side: int | None = None
) -> Image.Image:
    """Return a picture with contributions (size, size) over it, RGB (see `overlay`)."""
    width, height = picture.size
    to = preprocess.geometry(height, width)
    if side and max(width, height) > side:
        shrink = side / max(width, height)
        width, height = (max(1, round(length * shrink)) for length in (width, height))
        picture = picture.resize((width, height), reducing_gap=3)
    across, down = width / to.width, height / to.height
    left, top = round(to.left * across), round(to.top * down)
    right = max(left + 1, round((to.left + preprocess.size) * across))
    bottom = max(top + 1, round((to.top + preprocess.size) * down))
    grey = picture.convert("L").point([DARKEST + (LIGHTEST - DARKEST) * value // 255 for value in range(256)])
    shown = grey.convert("RGB")
    peak = float(np.abs(contributions).max()) or 1.0
    for sign, colour in ((1, FOR), (-1, AGAINST)):
        strength = np.clip(sign * contributions / peak, 0, 1) * 255 * OPACITY
        mask = Image.fromarray(strength.astype(np.uint8)).resize(
            (right - left, bottom - top), Image.Resampling.BILINEAR
        )
        shown.paste(colour, (left, top, right, bottom), mask)
    if (left, top, right, bottom) != (0, 0, *shown.size):
        line = max(1, max(shown.size) // 300)
        ImageDraw.Draw(shown).rectangle((left, top, right - 1, bottom - 1), outline=FRAME, width=line)
    return shown


def upright(source: Source, key: str, preprocess: Preprocess) -> tuple[Image.Image, bool]:
    """Return an image in RGB as a viewer shows it, and whether it is reduced, being a very large one."""
    encoded = EncodedImage(source.read(key))
    grey = replace(preprocess, mode="RGB", mean=(0.5,) * 3, std=(0.5,) * 3)
    picture = encoded.image(grey)
    return picture, sorted(picture.size) != sorted(encoded.size)
