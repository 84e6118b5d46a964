"""Every mode that Pillow can decode, brought to 8 bits of grey, RGB or RGBA without losing what it shows.

Pillow's own `convert` saturates 16-bit grey at 255 and drops transparency to whatever colour lies below it;
here grey keeps its range, and transparent pixels are seen over white.

Shapes: H, W height and width.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from bottleneck.errors import ImageError

_BITS_PER_SAMPLE = 258  # TIFF tag


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert a decoded image of any mode to `mode`.

    Parameters
    ----------
    image : PIL.Image.Image
        Its pixels loaded. Grey of more than 8 bits maps its whole range onto 0…255: 0…65535 for "I;16" and
        "I" (16-bit PGM), or as many bits as a TIFF says; "F" is read as 0…1 where all values lie there, else
        as 0…255.
    mode : {"L", "RGB", "RGBA"}

    Raises
    ------
    ImageError
        Values of "I" or "F" outside those ranges: how to show them cannot be guessed.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_grey_levels(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return image if mode == "RGBA" else _over_white(image).convert(mode)
    if image.mode in ("LAB", "HSV", "YCbCr"):  # Pillow takes these to RGB alone
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _over_white(image: Image.Image) -> Image.Image:
    """Blend an RGBA image onto white: RGB."""
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def _grey_levels(image: Image.Image) -> np.ndarray:
    """(H, W) uint8 of a grey image with more than 8 bits."""
    values = np.asarray(image)
    low, high = values.min().item(), values.max().item()
    if image.mode == "F":
        if not (low >= 0 and high <= 255):  # NaN fails too
            raise ImageError(f"has float pixels from {low:g} to {high:g}; expected 0 to 1 or 0 to 255")
        return np.rint(values * (255 if high <= 1 else 1)).astype(np.uint8)
    bits = min(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0], 16)
    top = (1 << bits) - 1
    if low < 0 or high > top:
        raise ImageError(f"has grey values from {low} to {high}; expected 0 to {top}")
    return np.rint(values * np.float32(255 / top)).astype(np.uint8)


def as_array(image: Image.Image) -> np.ndarray:
    """(H, W, C) uint8 of an image in mode L, RGB or RGBA."""
    return np.asarray(image).reshape(image.height, image.width, -1)


def as_image(pixels: np.ndarray) -> Image.Image:
    """The image in mode L, RGB or RGBA whose pixels (H, W, C) are given."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
