"""Convert decoded images of any mode to L, RGB or RGBA, whole or in bands of few rows, and to arrays.

Shapes: H, W height and width, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from bottleneck.errors import ImageError

BAND = 500_000  # pixels that are converted at a time

_BITS_PER_SAMPLE = 258  # TIFF tags
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0


class Rendering(NamedTuple):
    """What has to be known of a whole image to convert any part of it.

    grey : factor of grey with more than 8 bits, None for other images. inverted : 0 is white.
    clear : its alpha is 0 everywhere.
    """

    grey: float | None
    inverted: bool
    clear: bool


def rendering_of(image: Image.Image) -> Rendering:
    """Return what has to be known of a decoded image to convert any part of it."""
    inverted = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    clear = image.has_transparency_data and all(
        band.convert("RGBA").getchannel("A").getextrema() == (0, 0) for _, band in _bands(image)
    )
    return Rendering(_grey_scale(image), inverted, clear)


def to_mode(image: Image.Image, mode: str, rendering: Rendering | None = None) -> Image.Image:
    """Convert a decoded image of any mode to `mode`.

    Unlike Pillow's `convert`, grey of more than 8 bits keeps its range instead of saturating at 255, and
    transparent pixels are shown over white instead of in the colour stored below them; but an image that is
    transparent everywhere shows its colours.

    Parameters
    ----------
    image : PIL.Image.Image
        Its pixels loaded. Grey of more than 8 bits maps its whole range onto 0…255: 0…65535 for "I;16" and
        "I" (16-bit PGM), or as many bits as a TIFF names; "F" is read as 0…1 where all values lie there, else
        as 0…255.
    mode : {"L", "RGB", "RGBA"}
    rendering : that of the whole image, where `image` is a part.

    Raises
    ------
    ImageError
        Values of "I" or "F" outside those ranges: how to show them cannot be guessed.
    """
    rendering = rendering or rendering_of(image)
    if rendering.grey is not None:  # Pillow itself inverts 8 bits and fewer
        levels = np.rint(np.asarray(image) * np.float32(rendering.grey)).astype(np.uint8)
        image = Image.fromarray(255 - levels if rendering.inverted else levels)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if mode == "RGBA":
            return image
        return (image.convert("RGB") if rendering.clear else _over_white(image)).convert(mode)
    if image.mode in ("LAB", "HSV", "YCbCr"):  # Pillow converts these to RGB only
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _over_white(image: Image.Image) -> Image.Image:
    """Blend an RGBA image onto white: RGB."""
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def _grey_scale(image: Image.Image) -> float | None:
    """Return the factor for the values of a grey image with more than 8 bits; None for other images."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return None
    ranges = [
        (values.min().item(), values.max().item()) for values in (np.asarray(b) for _, b in _bands(image))
    ]
    low, high = np.min(ranges).item(), np.max(ranges).item()
    if image.mode == "F":
        if not (low >= 0 and high <= 255):  # NaN fails too
            raise ImageError(f"has float pixels from {low:g} to {high:g}; expected 0 to 1 or 0 to 255")
        return 255.0 if high <= 1 else 1.0
    bits = min(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0], 16)
    top = (1 << bits) - 1
    if low < 0 or high > top:
        raise ImageError(f"has grey values from {low} to {high}; expected 0 to {top}")
    return 255 / top


def in_bands(image: Image.Image, mode: str, factor: int, rendering: Rendering) -> Image.Image:
    """Return a decoded image in `mode`, its sides divided by `factor`; few rows are converted at a time."""
    if factor == 1 and image.mode == mode and not image.has_transparency_data:
        return image
    width, height = image.size
    result = Image.new(mode, (-(-width // factor), -(-height // factor)))
    for top, band in _bands(image, factor):
        result.paste(to_mode(band, mode, rendering).reduce(factor), (0, top // factor))
    return result


def _bands(image: Image.Image, factor: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """Yield (first row, part) for parts of about `BAND` pixels, of a multiple of `factor` rows."""
    rows = max(1, BAND // (image.width * factor)) * factor
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def as_array(image: Image.Image) -> np.ndarray:
    """Return the (H, W, C) uint8 pixels of an image in mode L, RGB or RGBA."""
    return np.asarray(image).reshape(image.height, image.width, -1)


def as_image(pixels: np.ndarray) -> Image.Image:
    """Return the image in mode L, RGB or RGBA of pixels (H, W, C)."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
