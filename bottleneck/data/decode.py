"""From a file's bytes to an upright image in the mode asked for: safe on any bytes, right for every mode.

Pillow decodes; photographs that only have to become an array may take a shorter way to the same pixels.

Shapes: H, W height and width, C channels.

Every mode that Pillow can decode, brought to 8 bits of grey, RGB or RGBA without losing what it shows.

Pillow's own `convert` saturates 16-bit grey at 255 and drops transparency to whatever colour lies below it;
here grey keeps its range, and transparent pixels are seen over white.

Shapes: H, W height and width.

Resize and cut by torch's antialiased uint8 kernel, which is Pillow's algorithm vectorised.

It takes a third of Pillow's time, and its pixels differ from Pillow's by one grey level here and there (tests
hold the two together). torch is imported only when an image gets here.

Shapes: H, W height and width, C channels.

Photographs straight into an array: torchvision's JPEG decoder, whose pixels are Pillow's bit for bit.

Both are libjpeg-turbo; this one spares Pillow's detour over four bytes per pixel, a fifth of the time that an
image takes from file to network. Its public name is deprecated since torchvision 0.29; where the operator is
gone, and where it refuses a file, Pillow decodes.

Shapes: H, W height and width, C channels.
"""

from __future__ import annotations

import io
import re
from functools import cache

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

from bottleneck.data.preprocess import ELONGATED, Preprocess
from bottleneck.data.untrusted import parsing
from bottleneck.errors import ImageError
from bottleneck.threads import one_torch_thread

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


def fast_pixels(pixels: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """What `preprocess` gives, (size, size, C) uint8, by the faster of the two ways that fit the image.

    pixels : (H, W, C) uint8 in the mode of `preprocess`.
    """
    height, width, _ = pixels.shape
    if not _fits(height, width, preprocess):
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


def _fits(height: int, width: int, preprocess: Preprocess) -> bool:
    """Alpha needs premultiplying, which Pillow does; torch has two filters; strips would take gigabytes."""
    return (
        preprocess.mode in ("RGB", "L")
        and preprocess.interpolation in ("bilinear", "bicubic")
        and max(height, width) < ELONGATED * min(height, width)
    )


# torchvision.io.ImageReadMode
_READ_MODES = {"L": 1, "RGB": 3}


def jpeg_array(data: bytes, header: Image.Image, mode: str) -> np.ndarray | None:
    """The (H, W, C) uint8 pixels of a JPEG file as they are stored, or None where Pillow has to decode it.

    Parameters
    ----------
    data : bytes
        The file of which `header` was read by Pillow.
    mode : {"RGB", "L", "RGBA"}
        Wanted; only that of the file itself is given.
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
def _decoder():
    """torchvision's operator; None where there is none."""
    try:
        import torch
        import torchvision  # noqa: F401  (registers it)

        return torch.ops.image.decode_jpeg
    except (ImportError, AttributeError):
        return None


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
