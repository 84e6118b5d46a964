"""Decode the bytes of an image file to upright 8-bit pixels in mode L, RGB or RGBA, and cut them to size.

Any bytes are safe: size and scans are checked from the header, and a bad image raises ImageError. Pillow
decodes every format and mode. Photographs take two shorter ways; torch is imported only for them:

    JPEG in its own mode   torchvision's decoder, libjpeg-turbo as Pillow's: the same pixels, without Pillow's
                           detour over four bytes per pixel
    resize of L and RGB    torch's antialiased uint8 kernel, Pillow's algorithm vectorised: pixels differ by
                           one grey level here and there

Shapes: H, W height and width, C channels.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import (  # noqa: F401  (Pillow would load all of its plugins for a format whose own is not loaded)
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from bottleneck.data.preprocess import ELONGATED, Preprocess
from bottleneck.data.untrusted import parsing
from bottleneck.errors import ImageError
from bottleneck.threads import one_torch_thread

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
MAX_PIXELS = 100_000_000
MAX_SCANNED = 20 * MAX_PIXELS  # pixels × scans of a progressive JPEG; encoders write about ten scans

_ORIENTATION = 0x0112  # EXIF tag
_BITS_PER_SAMPLE = 258  # TIFF tag
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_READ_MODES = {"L": 1, "RGB": 3}  # torchvision.io.ImageReadMode


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
    """An image file of which only the header has been read and checked against the bounds.

    Parameters and errors are those of `decode_image`.
    """

    def __init__(self, data: bytes, max_pixels: int = MAX_PIXELS) -> None:
        self._data = data
        self._header = _read_header(data, max_pixels)
        width, height = self._header.size
        if width * height > max_pixels:
            raise _too_large(f"{width} × {height} = {width * height:,} pixels", max_pixels)
        if self._header.info.get("progressive"):  # for other files, their length bounds the time
            scans = data.count(b"\xff\xda")
            if scans * width * height > MAX_SCANNED:
                raise ImageError(
                    f"is a progressive JPEG of {scans} scans, which would take minutes to decode"
                )

    @property
    def memory(self) -> int:
        """Most bytes that decoding and resizing take: Pillow keeps 4 per pixel, and each copy as many."""
        return 16 * self._header.width * self._header.height

    def decode(self, mode: str) -> Image.Image:
        """Return the upright image in `mode`. Call this or `array`, once."""
        with parsing("is damaged"):
            self._header.load()
        orientation = self._orientation()
        with parsing("cannot be converted"):
            image = to_mode(self._header, mode)
        return image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image

    def array(self, mode: str) -> np.ndarray:
        """Return the pixels of `decode` as (H, W, C) uint8."""
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
    """Open an image without decoding pixels."""
    if not data:
        raise ImageError("is empty (0 bytes)")
    with parsing("cannot be opened"):
        try:
            return Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            start, formats = bytes(data[:8]), ", ".join(FORMATS)
            raise ImageError(f"is damaged or none of {formats} (it begins with {start!r})") from None
        except Image.DecompressionBombError as error:  # Pillow's own bound; its message has the size
            pixels = re.search(r"\((\d+) pixels\)", str(error))
            size = f"{int(pixels[1]):,} pixels" if pixels else "too many pixels"
            raise _too_large(size, min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))) from None


def _too_large(size: str, allowed: int) -> ImageError:
    return ImageError(f"has {size}, and {allowed:,} are allowed: scale it down")


def jpeg_array(data: bytes, header: Image.Image, mode: str) -> np.ndarray | None:
    """Return the (H, W, C) uint8 pixels of a JPEG file as stored, or None where Pillow has to decode it.

    Parameters
    ----------
    data : bytes
        The file whose header Pillow read as `header`.
    mode : {"RGB", "L", "RGBA"}
        None is returned unless this is the mode of the file itself.
    """
    if (
        not isinstance(header, JpegImagePlugin.JpegImageFile)
        or mode != header.mode
        or mode not in _READ_MODES
    ):
        return None
    decode = _decoder()
    if decode is None:
        return None
    import torch

    try:
        pixels = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), _READ_MODES[mode], False)
    except RuntimeError:
        return None
    return pixels.permute(1, 2, 0).numpy() if pixels.shape[1:] == header.size[::-1] else None


@cache
def _decoder() -> Callable[[Tensor, int, bool], Tensor] | None:
    """Return torchvision's operator (its public name is deprecated since 0.29), or None where it is gone."""
    try:
        import torch
        import torchvision  # noqa: F401  (registers it)

        return torch.ops.image.decode_jpeg
    except (ImportError, AttributeError):
        return None


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert a decoded image of any mode to `mode`.

    Unlike Pillow's `convert`, grey of more than 8 bits keeps its range instead of saturating at 255, and
    transparent pixels are shown over white instead of in the colour stored below them.

    Parameters
    ----------
    image : PIL.Image.Image
        Its pixels loaded. Grey of more than 8 bits maps its whole range onto 0…255: 0…65535 for "I;16" and
        "I" (16-bit PGM), or as many bits as a TIFF names; "F" is read as 0…1 where all values lie there, else
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
    if image.mode in ("LAB", "HSV", "YCbCr"):  # Pillow converts these to RGB only
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _over_white(image: Image.Image) -> Image.Image:
    """Blend an RGBA image onto white: RGB."""
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def _grey_levels(image: Image.Image) -> np.ndarray:
    """Return the (H, W) uint8 levels of a grey image with more than 8 bits."""
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
    """Return the (H, W, C) uint8 pixels of an image in mode L, RGB or RGBA."""
    return np.asarray(image).reshape(image.height, image.width, -1)


def as_image(pixels: np.ndarray) -> Image.Image:
    """Return the image in mode L, RGB or RGBA of pixels (H, W, C)."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def fast_pixels(pixels: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Resize and cut (H, W, C) uint8 to (size, size, C), with torch where possible, else with Pillow.

    `pixels` are in the mode of `preprocess`.
    """
    height, width, _ = pixels.shape
    if not _torch_can_resize(height, width, preprocess):
        return preprocess(as_image(pixels))
    import torch

    to = preprocess.geometry(height, width)
    batch = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))[None].permute(0, 3, 1, 2)
    with one_torch_thread():
        resized = torch.nn.functional.interpolate(
            batch, (to.height, to.width), mode=preprocess.interpolation, antialias=True
        )
    cut = resized[0, :, to.top : to.top + preprocess.size, to.left : to.left + preprocess.size]
    return np.ascontiguousarray(cut.permute(1, 2, 0).numpy())


def _torch_can_resize(height: int, width: int, preprocess: Preprocess) -> bool:
    return (
        preprocess.mode in ("RGB", "L")  # alpha needs premultiplying
        and preprocess.interpolation in ("bilinear", "bicubic")
        and max(height, width) < ELONGATED * min(height, width)  # a whole strip would take gigabytes
    )
