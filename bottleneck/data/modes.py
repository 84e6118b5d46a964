"""Every mode that Pillow can decode, brought to 8 bits of grey, RGB or RGBA without losing what it shows.

Pillow's own `convert` saturates 16-bit grey at 255, drops transparency to whatever colour lies below it and
warns on palettes with alpha; here 16-bit grey keeps its range and transparent pixels are seen over white.

Shapes: H, W height and width.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from bottleneck.errors import ImageError

_WHITE = {"L": 255, "RGB": (255, 255, 255)}


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert a decoded image of any mode to `mode`.

    Parameters
    ----------
    image : PIL.Image.Image
        Pixels loaded. "I;16" and its byte orders are read as 0…65535; "I" likewise (16-bit PGM and TIFF);
        "F" as 0…1 where all values lie there, else as 0…255.
    mode : {"L", "RGB", "RGBA"}

    Raises
    ------
    ImageError
        Values of "I" or "F" outside those ranges: how to show them cannot be guessed.
    """
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_grey_levels(image))
    if not image.has_transparency_data:
        return _opaque(image, mode)
    image = image.convert("RGBA")
    return image if mode == "RGBA" else _over_white(image).convert(mode)


def _opaque(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image without transparency; colour spaces that Pillow takes to RGB alone go there first."""
    if image.mode in ("LAB", "HSV", "YCbCr") and mode != "RGB":
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _over_white(image: Image.Image) -> Image.Image:
    """Blend an RGBA image onto white, (H, W) RGB."""
    white = Image.new("RGB", image.size, _WHITE["RGB"])
    white.paste(image, mask=image.getchannel("A"))
    return white


def _grey_levels(image: Image.Image) -> np.ndarray:
    """(H, W) uint8 of a grey image with more than 8 bits; its whole range maps onto 0…255."""
    values = np.asarray(image)
    if image.mode == "F":
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        if not (low >= 0 and high <= 255):  # false for NaN too
            raise ImageError(f"has float pixels from {low:g} to {high:g}; expected 0 to 1 or 0 to 255")
        return np.rint(values * (255 if high <= 1 else 1)).astype(np.uint8)
    if image.mode == "I":
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ImageError(f"has 32-bit pixels from {low} to {high}; expected 0 to 65535")
    return np.rint(values.astype(np.float32) / 257).astype(np.uint8)
