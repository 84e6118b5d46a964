"""Decode the bytes of an image file to upright 8-bit pixels in mode L, RGB or RGBA, and cut them to size.

Any bytes are safe: size and scans are checked from the header, and a bad image raises ImageError. Pillow
decodes every format and mode. Photographs take two shorter ways: `jpeg` and `resize`.

Shapes: H, W height and width, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, sqrt

import numpy as np
from PIL import Image, JpegImagePlugin, TiffImagePlugin

from bottleneck.data.image_header import read_header, too_large
from bottleneck.data.jpeg import DCT_SCALES, is_damaged_jpeg, is_own_jpeg, jpeg_array, several_scans
from bottleneck.data.modes import BAND, as_array, in_bands, rendering_of, to_mode
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.resize import fast_pixels
from bottleneck.data.untrusted import parsing
from bottleneck.errors import ImageError
from bottleneck.names import SCALED

MAX_PIXELS = 100_000_000
MAX_SIDE = 100_000
WHOLE = 16_000_000  # pixels up to which an image is converted and resized in one piece: 24 bytes a pixel
WHOLE_JPEG = 40_000_000  # the same for a JPEG in its own mode: 9 bytes a pixel
REDUCED = 4_000_000  # pixels to which a larger image is reduced before it is resized
MAX_SCANNED = 20 * MAX_PIXELS  # pixels × scans of a progressive JPEG; encoders write about ten scans

IMAGE_NOTES = {
    "image-first-frame": "have several frames or pages are read as the first of them",
    "image-scan-damaged": "have a damaged scan were read as far as libjpeg could; replace them",
    "image-transparent": "are transparent everywhere show the colours stored below",
}
_SEVERAL = ("GIF", "PNG", "TIFF", "WEBP")  # formats whose further images are frames or pages, not previews
_ORIENTATION = 0x0112  # EXIF tag
_ORIENTED = {"exif", "xmp", "XML:com.adobe.xmp"}  # where Pillow finds the orientation of a JPEG
_BITS_PER_SAMPLE = 258  # TIFF tag
_ROWS_PER_STRIP = 278
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # the same for arrays (H, W, C)
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
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
    return EncodedImage(data).pixels(preprocess)


class EncodedImage:
    """An image file of which only the header has been read and checked against the bounds.

    Parameters and errors are those of `decode_image`. Call `decode`, `array`, `image`, `pixels` or
    `both_ways`, once.

    A large image is decoded at a fraction of its size, or reduced band by band, so that beside the pixels as
    stored hardly more memory is needed. With `Preprocess.decoding` "scaled" every JPEG is decoded at the
    least of 1/1, 1/2, 1/4 and 1/8 of its size that is at least twice the wanted size.
    """

    def __init__(self, data: bytes, max_pixels: int = MAX_PIXELS) -> None:
        self._data = data
        self.notes: list[str] = []  # codes of `IMAGE_NOTES`, after decoding
        self._header = read_header(data, max_pixels)
        self.size = width, height = self._header.size  # as stored, before the image is made upright
        if max(width, height) > MAX_SIDE:
            raise ImageError(f"is {width} × {height} pixels, and {MAX_SIDE:,} are allowed a side: cut it up")
        if width * height > max_pixels:
            raise too_large(f"{width} × {height} = {width * height:,} pixels", max_pixels)
        self._scans = 1
        if self._header.info.get("progressive"):  # for other files, their length bounds the time
            self._scans = data.count(b"\xff\xda")
            if self._scans * width * height > MAX_SCANNED:
                raise ImageError(
                    f"is a progressive JPEG of {self._scans} scans, which would take minutes to decode"
                )

    def memory(self, preprocess: Preprocess) -> int:
        """Return the most bytes that `image`, `pixels` or `both_ways` takes, beside file and result."""
        width, height = self.size
        scale, factor = self._scale(preprocess), self._factor(preprocess)
        pixels = width * height // scale**2
        resizing = 4 * max(width, height) * 2 * preprocess.resize  # resized in one direction
        if self._in_one_piece(preprocess):
            # as stored, converted, upright, as array
            each = 9 if is_own_jpeg(self._header, preprocess.mode) else 24
            return each * pixels + self._decoder_memory(whole=True) + resizing
        if self._header.format == "JPEG":
            stored = width * height // max(scale, _draft_scale(factor)) ** 2
        else:
            stored = pixels
        reduced = 8 * (width * height // factor**2)
        return 4 * stored + reduced + 24 * BAND + self._decoder_memory(whole=False) + resizing

    def pixels(self, preprocess: Preprocess) -> np.ndarray:
        """Return the image resized and cut: (size, size, C) uint8."""
        if self._in_one_piece(preprocess):
            return self.cut(self.array(preprocess.mode, self._scale(preprocess)), preprocess)
        return preprocess(self.image(preprocess))

    def both_ways(self, preprocess: Preprocess) -> tuple[np.ndarray, np.ndarray]:
        """Return `pixels`, and those of the image mirrored left to right before it is resized and cut."""
        if self._in_one_piece(preprocess):
            pixels = self.array(preprocess.mode, self._scale(preprocess))
            return self.cut(pixels, preprocess), self.cut(pixels[:, ::-1], preprocess)
        image = self.image(preprocess)
        return preprocess(image), preprocess(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))

    def cut(self, pixels: np.ndarray, preprocess: Preprocess) -> np.ndarray:
        """Return the pixels (H, W, C) of `image` or `array` resized and cut: (size, size, C) uint8."""
        if self._scale(preprocess) == 1:
            return fast_pixels(pixels, preprocess)
        width, height = self.size
        turned = self._orientation() in (5, 6, 7, 8)
        return fast_pixels(pixels, preprocess, (width, height) if turned else (height, width))

    def image(self, preprocess: Preprocess) -> Image.Image:
        """Return the upright image in the mode of `preprocess`, a large one reduced to what that needs."""
        scale = self._scale(preprocess)
        if self._in_one_piece(preprocess):
            self._draft(scale)
            return self.decode(preprocess.mode)
        factor = self._factor(preprocess)
        if self._header.format == "JPEG":
            self._draft(max(scale, _draft_scale(factor)))
            factor = 1
        return self._decode(preprocess.mode, factor)

    def decode(self, mode: str) -> Image.Image:
        """Return the upright image in `mode`."""
        return self._decode(mode)

    def array(self, mode: str, scale: int = 1) -> np.ndarray:
        """Return the pixels of `decode` as (H, W, C) uint8; scale : of a JPEG, one of `jpeg.DCT_SCALES`."""
        pixels = jpeg_array(self._data, self._header, mode, scale)
        if pixels is None:
            self._draft(scale)
            image = self.decode(mode)  # which refuses what is cut short
            if is_damaged_jpeg(self._data, self._header, mode, scale):
                self.notes.append("image-scan-damaged")
            return as_array(image)
        orientation = self._orientation()
        return _UPRIGHT[orientation](pixels) if orientation in _UPRIGHT else pixels

    def close(self) -> None:
        """Free the image as stored."""
        self._header.close()
        self._data = b""

    def _decode(self, mode: str, factor: int | None = None) -> Image.Image:
        """Return the upright image in `mode`; with a factor reduced by it, band by band."""
        several = self._has_frames()
        with parsing("is damaged"):
            self._header.load()
        orientation = self._orientation()
        with parsing("cannot be converted"):
            rendering = rendering_of(self._header)
            if factor is None:
                image = to_mode(self._header, mode, rendering)
            else:
                image = in_bands(self._header, mode, factor, rendering)
        if rendering.clear and mode != "RGBA":
            self.notes.append("image-transparent")
        if several:
            self.notes.append("image-first-frame")
        return image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image

    def _draft(self, scale: int) -> None:
        """Let Pillow decode the JPEG at 1/scale of its size."""
        if scale > 1:
            with parsing("is damaged"):
                self._header.draft(None, (self.size[0] // scale, self.size[1] // scale))

    def _in_one_piece(self, preprocess: Preprocess) -> bool:
        """Return whether the image has few enough pixels to be decoded in one piece."""
        width, height = self.size
        most = WHOLE_JPEG if is_own_jpeg(self._header, preprocess.mode) else WHOLE
        return width * height <= most * self._scale(preprocess) ** 2

    def _scale(self, preprocess: Preprocess) -> int:
        """Return at which part of its size, 1/scale, the image is decoded by its recipe."""
        if preprocess.decoding != SCALED or self._header.format != "JPEG":
            return 1
        return _draft_scale(self._most(preprocess))

    def _most(self, preprocess: Preprocess) -> int:
        """Return the greatest factor by which the image may be reduced: twice the wanted size is left."""
        return max(1, min(self.size) // (2 * preprocess.resize))

    def _factor(self, preprocess: Preprocess) -> int:
        """Return by how much a large image is reduced: to `REDUCED` pixels, or twice the wanted size."""
        width, height = self.size
        return max(1, min(ceil(sqrt(width * height / REDUCED)), self._most(preprocess)))

    def _decoder_memory(self, whole: bool) -> int:
        """Return what the format's decoder takes beside the image, in bytes."""
        header, pixels = self._header, self.size[0] * self.size[1]
        decoder = header.tile[0][0] if header.tile else ""
        if header.format in ("WEBP", "AVIF", "HEIF"):
            return (8 if whole else 16) * pixels  # canvases, while loading also copies
        if header.format == "GIF":
            return 4 * pixels
        if isinstance(header, JpegImagePlugin.JpegImageFile):
            if not several_scans(self._data, header):
                return len(self._data)
            areas = [across * down for _, across, down, _ in header.layer]
            most = max(across for _, across, _, _ in header.layer) * max(down for *_, down, _ in header.layer)
            return len(self._data) + 2 * pixels * sum(areas) // max(1, most)  # all coefficients
        if isinstance(header, TiffImagePlugin.TiffImageFile) and decoder == "libtiff":
            tags = header.tag_v2
            rows = min(tags.get(_TILE_HEIGHT, tags.get(_ROWS_PER_STRIP, header.height)), header.height)
            columns, bits = tags.get(_TILE_WIDTH, header.width), sum(tags.get(_BITS_PER_SAMPLE, (8,)))
            return len(self._data) + rows * columns * max(4, bits // 8)
        return 0 if decoder in ("raw", "zip") else 8 * pixels + len(self._data)  # written in Python

    def _has_frames(self) -> bool:
        """Whether more images follow the first; False where what follows is damaged."""
        try:
            with parsing("has damaged frames"):
                return self._header.format in _SEVERAL and bool(getattr(self._header, "is_animated", False))
        except ImageError:
            return False

    def _orientation(self) -> int:
        """EXIF orientation 1…8; 1 where the EXIF is unreadable, which is no reason to lose a photograph."""
        header = self._header
        if isinstance(header, JpegImagePlugin.JpegImageFile) and not _ORIENTED & header.info.keys():
            return 1  # at once: looking for it in vain takes as long as reading the file
        try:
            with parsing("has unreadable EXIF"):
                return header.getexif().get(_ORIENTATION, 1)
        except ImageError:
            return 1


def _draft_scale(factor: int) -> int:
    """Return the greatest of libjpeg's fast scales up to `factor`, which is at least 1."""
    return max(scale for scale in DCT_SCALES if scale <= factor)
