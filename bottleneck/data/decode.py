"""Decode the bytes of an image file to upright 8-bit pixels in mode L, RGB or RGBA, and cut them to size.

Any bytes are safe: size and scans are checked from the header, and a bad image raises ImageError. Pillow
decodes every format and mode. Photographs take two shorter ways:

    JPEG in its own mode   simplejpeg, which is libjpeg-turbo as in Pillow: the same pixels, without Pillow's
                           detour over four bytes per pixel
    resize of L and RGB    torch's antialiased uint8 kernel, Pillow's algorithm vectorised: pixels differ by
                           one grey level here and there; torch is imported only for this

Shapes: H, W height and width, C channels.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from math import ceil, sqrt
from typing import NamedTuple

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from PIL import (  # noqa: F401  (Pillow would load all of its plugins for a format whose own is not loaded)
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
    features,
)

from bottleneck.data.preprocess import ELONGATED, Preprocess
from bottleneck.data.untrusted import parsing
from bottleneck.errors import ImageError
from bottleneck.threads import one_torch_thread

FORMATS: tuple[str, ...] = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
if features.check("avif"):
    from PIL import AvifImagePlugin  # noqa: F401

    FORMATS += ("AVIF",)
if find_spec("pillow_heif"):  # the extra "heif"
    import pillow_heif  # type: ignore[import-not-found]  # optional

    pillow_heif.register_heif_opener()
    FORMATS += ("HEIF",)
MAX_PIXELS = 100_000_000
MAX_SIDE = 100_000
WHOLE = 16_000_000  # pixels up to which an image is converted and resized in one piece: 24 bytes a pixel
WHOLE_JPEG = 40_000_000  # the same for a JPEG in its own mode: 9 bytes a pixel
REDUCED = 4_000_000  # pixels to which a larger image is reduced before it is resized
BAND = 500_000  # pixels that are converted at a time
MAX_EXIF = 500_000  # bytes of EXIF that is stored as a PNG's text
MAX_SCANNED = 20 * MAX_PIXELS  # pixels × scans of a progressive JPEG; encoders write about ten scans

IMAGE_NOTES = {
    "image-first-frame": "have several frames or pages are read as the first of them",
    "image-scan-damaged": "have a damaged scan were read as far as libjpeg could; replace them",
    "image-transparent": "are transparent everywhere show the colours stored below",
}
_SEVERAL = ("GIF", "PNG", "TIFF", "WEBP")  # formats whose further images are frames or pages, not previews
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXT_CHUNKS = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")
_ORIENTATION = 0x0112  # EXIF tag
_BITS_PER_SAMPLE = 258  # TIFF tag
_PHOTOMETRIC, _WHITE_IS_ZERO, _BLACK_IS_ZERO = 262, 0, 1
for _form, _modes in [*TiffImagePlugin.OPEN_INFO.items()]:  # Pillow lacks some grey forms where 0 is white
    if _form[1] == _BLACK_IS_ZERO and _form[4][0] > 8:
        TiffImagePlugin.OPEN_INFO.setdefault((_form[0], _WHITE_IS_ZERO, *_form[2:]), _modes)
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
_COLOUR_SPACES = {"L": "GRAY", "RGB": "RGB"}  # simplejpeg's name of a mode
_CUT_SHORT = "Premature end of JPEG file"  # libjpeg's warning


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
    stored hardly more memory is needed.
    """

    def __init__(self, data: bytes, max_pixels: int = MAX_PIXELS) -> None:
        self._data = data
        self.notes: list[str] = []  # codes of `IMAGE_NOTES`, after decoding
        self._header = _read_header(data, max_pixels)
        width, height = self._header.size
        if max(width, height) > MAX_SIDE:
            raise ImageError(f"is {width} × {height} pixels, and {MAX_SIDE:,} are allowed a side: cut it up")
        if width * height > max_pixels:
            raise _too_large(f"{width} × {height} = {width * height:,} pixels", max_pixels)
        self._scans = 1
        if self._header.info.get("progressive"):  # for other files, their length bounds the time
            self._scans = data.count(b"\xff\xda")
            if self._scans * width * height > MAX_SCANNED:
                raise ImageError(
                    f"is a progressive JPEG of {self._scans} scans, which would take minutes to decode"
                )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as stored, before the image is made upright."""
        return self._header.size

    def memory(self, preprocess: Preprocess) -> int:
        """Return the most bytes that `image`, `pixels` or `both_ways` takes, beside file and result."""
        width, height = self._header.size
        pixels, factor = width * height, self._factor(preprocess)
        resizing = 4 * max(width, height) * 2 * preprocess.resize  # resized in one direction
        if pixels <= self._whole(preprocess.mode):
            each = (
                9 if _is_own_jpeg(self._header, preprocess.mode) else 24
            )  # as stored, converted, upright, as array
            return each * pixels + self._decoder_memory(whole=True) + resizing
        stored = pixels // _draft_scale(factor) ** 2 if self._header.format == "JPEG" else pixels
        return (
            4 * stored + 8 * (pixels // factor**2) + 24 * BAND + self._decoder_memory(whole=False) + resizing
        )

    def pixels(self, preprocess: Preprocess) -> np.ndarray:
        """Return the image resized and cut: (size, size, C) uint8."""
        if self._header.width * self._header.height <= self._whole(preprocess.mode):
            return fast_pixels(self.array(preprocess.mode), preprocess)
        return preprocess(self.image(preprocess))

    def both_ways(self, preprocess: Preprocess) -> tuple[np.ndarray, np.ndarray]:
        """Return `pixels`, and those of the image mirrored left to right before it is resized and cut."""
        if self._header.width * self._header.height <= self._whole(preprocess.mode):
            pixels = self.array(preprocess.mode)
            return fast_pixels(pixels, preprocess), fast_pixels(pixels[:, ::-1], preprocess)
        image = self.image(preprocess)
        return preprocess(image), preprocess(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))

    def image(self, preprocess: Preprocess) -> Image.Image:
        """Return the upright image in the mode of `preprocess`, a large one reduced to what that needs."""
        if self._header.width * self._header.height <= self._whole(preprocess.mode):
            return self.decode(preprocess.mode)
        factor = self._factor(preprocess)
        if self._header.format == "JPEG":
            scale = _draft_scale(factor)
            with parsing("is damaged"):
                self._header.draft(None, (self._header.width // scale, self._header.height // scale))
            factor = 1
        return self._decode(preprocess.mode, factor)

    def decode(self, mode: str) -> Image.Image:
        """Return the upright image in `mode`."""
        return self._decode(mode)

    def array(self, mode: str) -> np.ndarray:
        """Return the pixels of `decode` as (H, W, C) uint8."""
        pixels = jpeg_array(self._data, self._header, mode)
        if pixels is None:
            image = self.decode(mode)  # which refuses what is cut short
            if is_damaged_jpeg(self._data, self._header, mode):
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
            rendering = _rendering(self._header)
            if factor is None:
                image = to_mode(self._header, mode, rendering)
            else:
                image = _in_bands(self._header, mode, factor, rendering)
        if rendering.clear and mode != "RGBA":
            self.notes.append("image-transparent")
        if several:
            self.notes.append("image-first-frame")
        return image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image

    def _whole(self, mode: str) -> int:
        """Return up to how many pixels the image is decoded in one piece."""
        return WHOLE_JPEG if _is_own_jpeg(self._header, mode) else WHOLE

    def _factor(self, preprocess: Preprocess) -> int:
        """Return by how much a large image is reduced: to `REDUCED` pixels, or twice the wanted size."""
        width, height = self._header.size
        most = min(width, height) // (2 * preprocess.resize)
        return max(1, min(ceil(sqrt(width * height / REDUCED)), most))

    def _decoder_memory(self, whole: bool) -> int:
        """Return what the format's decoder takes beside the image, in bytes."""
        header, pixels = self._header, self._header.width * self._header.height
        decoder = header.tile[0][0] if header.tile else ""
        if header.format in ("WEBP", "AVIF", "HEIF"):
            return (8 if whole else 16) * pixels  # canvases, while loading also copies
        if header.format == "GIF":
            return 4 * pixels
        if isinstance(header, JpegImagePlugin.JpegImageFile):
            if self._data.count(b"\xff\xda", header.fp.tell() if header.fp else 0) == 0:
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
        try:
            with parsing("has unreadable EXIF"):
                return self._header.getexif().get(_ORIENTATION, 1)
        except ImageError:
            return 1


def _draft_scale(factor: int) -> int:
    """Return the greatest scale of libjpeg, 1, 2, 4 or 8, up to `factor`."""
    return 1 << min(3, factor.bit_length() - 1)


def _in_bands(image: Image.Image, mode: str, factor: int, rendering: _Rendering) -> Image.Image:
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


def _read_header(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Open an image without decoding pixels."""
    if not data:
        raise ImageError("is empty (0 bytes)")
    with parsing("cannot be opened"):
        try:
            return Image.open(io.BytesIO(_without_text(data)), formats=FORMATS)
        except UnidentifiedImageError:
            start, formats = bytes(data[:8]), ", ".join(FORMATS)
            raise ImageError(f"is damaged or none of {formats} (it begins with {start!r})") from None
        except Image.DecompressionBombError as error:  # Pillow's own bound; its message has the size
            pixels = re.search(r"\((\d+) pixels\)", str(error))
            size = f"{int(pixels[1]):,} pixels" if pixels else "too many pixels"
            raise _too_large(size, min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))) from None


def _without_text(data: bytes) -> bytes:
    """Return a PNG file without its colour profile and texts, EXIF apart; other data as they are.

    Pillow would unpack them, and refuses an image with more than a megabyte of them.
    """
    if not data.startswith(_PNG):
        return data
    kept, start, at = [], 0, len(_PNG)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if kind in _TEXT_CHUNKS and end <= len(data) and not _is_exif(kind, data[at + 8 : end - 4]):
            kept.append(data[start:at])
            start = end
        at = end
    return b"".join((*kept, data[start:])) if kept else data


def _is_exif(kind: bytes, chunk: bytes) -> bool:
    """Return whether a text chunk holds EXIF, as ImageMagick writes it, of a size that EXIF may have."""
    if not chunk.startswith(b"Raw profile type exif\0") or len(chunk) > MAX_EXIF:
        return False
    if kind != b"zTXt":
        return kind == b"tEXt"
    try:
        return len(zlib.decompressobj().decompress(chunk.partition(b"\0")[2][1:], MAX_EXIF)) < MAX_EXIF
    except zlib.error:
        return False


def _too_large(size: str, allowed: int) -> ImageError:
    return ImageError(f"has {size}, and {allowed:,} are allowed: scale it down")


def jpeg_array(data: bytes, header: Image.Image, mode: str) -> np.ndarray | None:
    """Return the (H, W, C) uint8 pixels of a sound JPEG file, or None where Pillow has to decode it.

    Parameters
    ----------
    data : bytes
        The file whose header Pillow read as `header`.
    mode : {"RGB", "L", "RGBA"}
        None is returned unless this is the mode of the file itself.
    """
    if not _is_own_jpeg(header, mode):
        return None
    try:
        pixels = simplejpeg.decode_jpeg(data, _COLOUR_SPACES[mode])
    except ValueError:
        return None
    return pixels if pixels.shape[1::-1] == header.size else None


def is_damaged_jpeg(data: bytes, header: Image.Image, mode: str) -> bool:
    """Return whether libjpeg reads a JPEG file of this mode with warnings, other than of its missing end."""
    if not _is_own_jpeg(header, mode):
        return False
    try:
        simplejpeg.decode_jpeg(data, _COLOUR_SPACES[mode])
    except ValueError as warning:
        if _CUT_SHORT in str(warning):
            return False
        with suppress(ValueError):
            return bool(simplejpeg.decode_jpeg(data, _COLOUR_SPACES[mode], strict=False).size)
    return False


def _is_own_jpeg(header: Image.Image, mode: str) -> bool:
    return (
        isinstance(header, JpegImagePlugin.JpegImageFile) and mode == header.mode and mode in _COLOUR_SPACES
    )


class _Rendering(NamedTuple):
    """What has to be known of a whole image to convert any part of it.

    grey : factor of grey with more than 8 bits, None for other images. inverted : 0 is white.
    clear : its alpha is 0 everywhere.
    """

    grey: float | None
    inverted: bool
    clear: bool


def _rendering(image: Image.Image) -> _Rendering:
    inverted = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    clear = image.has_transparency_data and all(
        band.convert("RGBA").getchannel("A").getextrema() == (0, 0) for _, band in _bands(image)
    )
    return _Rendering(_grey_scale(image), inverted, clear)


def to_mode(image: Image.Image, mode: str, rendering: _Rendering | None = None) -> Image.Image:
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
    rendering = rendering or _rendering(image)
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
