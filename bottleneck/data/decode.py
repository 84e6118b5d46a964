"""From a file's bytes to an upright image in the mode asked for: safe on any bytes, right for every mode.

Pillow decodes; photographs that only have to become an array may take a shorter way to the same pixels.

Shapes: H, W height and width, C channels.
"""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import (  # noqa: F401  (opening a format whose plugin is not loaded would load all that Pillow has)
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from bottleneck.data.jpeg import jpeg_array
from bottleneck.data.modes import as_array, as_image, to_mode
from bottleneck.data.parsing import parsing
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.resize import fast_pixels
from bottleneck.errors import ImageError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
MAX_PIXELS = 100_000_000
MAX_SCANNED = 20 * MAX_PIXELS  # pixels × scans of a progressive JPEG; encoders write about ten scans

_ORIENTATION = 0x0112  # EXIF tag
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes, mode: str = "RGB", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one image with Pillow: first frame, upright (EXIF orientation), in `mode`.

    Parameters
    ----------
    data : bytes
        A whole file of one of `FORMATS`.
    mode : {"RGB", "L", "RGBA"}
    max_pixels : int
        Larger images are refused from their header, before anything is decoded.

    Raises
    ------
    ImageError
        The bytes are no such image, are damaged or exceed a bound: a short reason that names no file.
    """
    return EncodedImage(data, max_pixels).decode(mode)


def pixels_from_bytes(data: bytes, preprocess: Preprocess) -> np.ndarray:
    """Decode, resize and cut one image to (size, size, C) uint8. Raises ImageError as `decode_image` does."""
    return fast_pixels(EncodedImage(data).array(preprocess.mode), preprocess)


class EncodedImage:
    """An image file of which only the header has been read and held against the bounds.

    Parameters and errors are those of `decode_image`.
    """

    def __init__(self, data: bytes, max_pixels: int = MAX_PIXELS) -> None:
        self._data = data
        self._header = _read_header(data, max_pixels)
        width, height = self._header.size
        if width * height > max_pixels:
            raise _too_large(f"{width} × {height} = {width * height:,} pixels", max_pixels)
        if self._header.info.get("progressive"):  # elsewhere, time is bound by the file's length
            scans = data.count(b"\xff\xda")
            if scans * width * height > MAX_SCANNED:
                raise ImageError(
                    f"is a progressive JPEG of {scans} scans, which would take minutes to decode"
                )

    @property
    def memory(self) -> int:
        """Bytes that decoding and resizing take at most: Pillow keeps 4 a pixel, and each copy as many."""
        return 16 * self._header.width * self._header.height

    def decode(self, mode: str) -> Image.Image:
        """Decode the pixels: upright and in `mode`. Call this or `array`, once."""
        with parsing("is damaged"):
            self._header.load()
        orientation = self._orientation()
        with parsing("cannot be converted"):
            image = to_mode(self._header, mode)
        return image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image

    def array(self, mode: str) -> np.ndarray:
        """What `decode` gives, as (H, W, C) uint8."""
        pixels = jpeg_array(self._data, self._header, mode)
        if pixels is None:
            return as_array(self.decode(mode))
        orientation = self._orientation()
        if orientation not in _TRANSPOSE:
            return pixels
        return as_array(as_image(pixels).transpose(_TRANSPOSE[orientation]))

    def _orientation(self) -> int:
        """EXIF orientation 1…8; 1 where the EXIF is unreadable, which is no reason to lose a photograph."""
        try:
            with parsing("has unreadable EXIF"):
                return self._header.getexif().get(_ORIENTATION, 1)
        except ImageError:
            return 1


def _read_header(data: bytes, max_pixels: int) -> Image.Image:
    """Open an image, decoding no pixel. Beyond a bound of its own, Pillow tells the size in words alone."""
    if not data:
        raise ImageError("is empty (0 bytes)")
    with parsing("cannot be opened"):
        try:
            return Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.UnidentifiedImageError:
            start, formats = bytes(data[:8]), ", ".join(FORMATS)
            raise ImageError(f"is damaged or none of {formats} (it begins with {start!r})") from None
        except Image.DecompressionBombError as error:
            pixels = re.search(r"\((\d+) pixels\)", str(error))
            size = f"{int(pixels[1]):,} pixels" if pixels else "too many pixels"
            raise _too_large(size, min(max_pixels, 2 * Image.MAX_IMAGE_PIXELS)) from None


def _too_large(size: str, allowed: int) -> ImageError:
    return ImageError(f"has {size}, and {allowed:,} are allowed: scale it down")
