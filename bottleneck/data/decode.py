"""From a file's bytes to pixels: safe on any bytes, right for every mode, fast where that changes nothing.

Two decoders. Pillow is the reference. 8-bit grey and RGB JPEG, most photographs, go through libjpeg-turbo and
the antialiased uint8 resize of torchvision instead, in half the time; the two differ by at most a few grey
levels at single pixels (tests hold them to it). torch is imported only when that path is taken.

Shapes: H, W height and width, C channels.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
from PIL import (  # noqa: F401
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from bottleneck.data.modes import to_mode
from bottleneck.data.preprocess import ELONGATED, Preprocess
from bottleneck.errors import ImageError

# The plugins are imported above: Pillow would import all that it has, obscure formats included, to find one.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
MAX_PIXELS = 100_000_000
MAX_SCAN_PASSES = 20  # scans of a JPEG, as passes over MAX_PIXELS pixels; an encoder writes ten

Admit = Callable[[int], AbstractContextManager]

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
        The bytes are not such an image, are damaged or exceed a bound; a short reason without a name.
    """
    return _load(_open(data, max_pixels), mode)


def pixels_from_bytes(data: bytes, preprocess: Preprocess, admit: Admit | None = None) -> np.ndarray:
    """Decode, resize and cut one image to (size, size, C) uint8, by the fast decoder where it agrees.

    `admit`, given the bytes of memory that decoding will take, returns a context that is entered before they
    are taken. Raises `ImageError` as `decode_image` does.
    """
    image = _open(data, MAX_PIXELS)
    with (admit or nullcontext)(decoded_bytes(image)):
        if _fast(image, preprocess):
            pixels = _fast_pixels(data, image, preprocess)
            if pixels is not None:
                return pixels
        return preprocess(_load(image, preprocess.mode))


def decoded_bytes(image: Image.Image) -> int:
    """Memory in bytes that decoding and converting an opened image takes at its peak, an upper estimate."""
    return 8 * image.width * image.height  # Pillow keeps 4 bytes a pixel, and converting makes a second copy


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header and hold it against the bounds; no pixel is decoded."""
    if not data:
        raise ImageError("is empty (0 bytes)")
    with _hostile("cannot be identified as an image"):
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.UnidentifiedImageError:
            raise ImageError(
                f"is not an image of a known format (it begins with {bytes(data[:8])!r})"
            ) from None
        except Image.DecompressionBombError as error:
            raise ImageError(str(error)) from None
    pixels = image.width * image.height
    if pixels > max_pixels:
        size = f"{image.width} × {image.height}"
        raise ImageError(f"has {size} = {pixels / 1e6:.0f} megapixels; the limit is {max_pixels / 1e6:.0f}")
    if not pixels:
        raise ImageError(f"has no pixels ({image.width} × {image.height})")
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        scans = data.count(b"\xff\xda")
        if scans * pixels > MAX_SCAN_PASSES * MAX_PIXELS:
            raise ImageError(f"is a JPEG of {scans} scans, which would take minutes to decode")
    return image


def _load(image: Image.Image, mode: str) -> Image.Image:
    """Decode an opened image: upright and in `mode`."""
    with _hostile("is damaged"):
        image.load()
    transpose = _TRANSPOSE.get(orientation(image))
    with _hostile("cannot be converted"):
        image = to_mode(image, mode)
    return image if transpose is None else image.transpose(transpose)


def orientation(image: Image.Image) -> int:
    """EXIF orientation 1…8; 1 where there is none or the EXIF is unreadable, which is no reason to lose a
    photograph."""
    try:
        with _hostile("has unreadable EXIF"):
            value = image.getexif().get(0x0112, 1)
    except ImageError:
        return 1
    return value if value in _TRANSPOSE else 1


def _fast(image: Image.Image, preprocess: Preprocess) -> bool:
    """True where torchvision gives the pixels that Pillow gives."""
    same_channels = image.mode == preprocess.mode or (image.mode, preprocess.mode) == ("L", "RGB")
    return (
        isinstance(image, JpegImagePlugin.JpegImageFile)
        and same_channels
        and preprocess.interpolation in ("bilinear", "bicubic")
        and max(image.size) < ELONGATED * min(image.size)
    )


def _fast_pixels(data: bytes, image: Image.Image, preprocess: Preprocess) -> np.ndarray | None:
    """Pixels by torchvision, or None where it refuses the file: the reason is then Pillow's to give."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    mode = ImageReadMode.RGB if preprocess.mode == "RGB" else ImageReadMode.GRAY
    try:
        pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=mode)  # (C, H, W)
    except RuntimeError:
        return None
    pixels = _upright(pixels, orientation(image))
    to = preprocess.geometry(*pixels.shape[1:])
    pixels = torch.nn.functional.interpolate(
        pixels[None], (to.height, to.width), mode=preprocess.interpolation, antialias=True
    )[0]
    pixels = pixels[:, to.top : to.top + preprocess.size, to.left : to.left + preprocess.size]
    return pixels.permute(1, 2, 0).contiguous().numpy()


def _upright(pixels, turn: int):
    """Apply an EXIF orientation to (C, H, W) pixels."""
    if turn >= 5:
        pixels = pixels.transpose(1, 2)
    flips = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(turn)
    return pixels.flip(flips) if flips else pixels


@contextmanager
def _hostile(what: str) -> Iterator[None]:
    """Around each call that lets Pillow parse a stranger's bytes: what it raises there is about the bytes.

    Nothing of our own runs inside, so that a defect of ours still surfaces as itself.
    """
    with _quiet():
        try:
            yield
        except ImageError:
            raise
        except MemoryError:
            raise ImageError("needs more memory than there is") from None
        except Exception as error:
            raise ImageError(f"{what}: {str(error) or type(error).__name__}"[:300]) from error


class _WhileDecoding:
    """The message pattern of one warning filter: it matches only in threads that are decoding."""

    here = threading.local()

    def match(self, text: str) -> bool:
        return getattr(self.here, "decoding", False)


_FILTER = ("ignore", _WhileDecoding(), Warning, None, 0)
_filter_lock = threading.Lock()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep this thread's warnings to itself.

    Pillow warns of odd metadata and large sizes, which the bounds above and the list of failures deal with.
    `warnings.catch_warnings` swaps the filters of the whole process, and two threads that leave it in the
    wrong order lose the user's for good; so one filter is added that does nothing outside of this block.
    """
    here = _WhileDecoding.here
    if getattr(here, "decoding", False):
        yield
        return
    with _filter_lock:
        if not warnings.filters or warnings.filters[0] is not _FILTER:
            if _FILTER in warnings.filters:
                warnings.filters.remove(_FILTER)
            warnings.filters.insert(0, _FILTER)
    here.decoding = True
    try:
        yield
    finally:
        here.decoding = False
