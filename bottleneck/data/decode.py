"""From a file's bytes to pixels: safe on any bytes, right for every mode, fast where that changes nothing.

Two decoders. Pillow is the reference. Grey and RGB JPEG, which most photographs are, go through torchvision's
libjpeg-turbo and antialiased uint8 resize instead, in half the time; the pixels differ by two grey levels at
most, and one in 300 by one (measured on 398 photographs). torch is imported only when that path is taken.

Shapes: H, W height and width, C channels.
"""

from __future__ import annotations

import io

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

from bottleneck.data.modes import to_mode
from bottleneck.data.parsing import parsing
from bottleneck.data.preprocess import ELONGATED, Preprocess
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
    """Decode, resize and cut one image to (size, size, C) uint8, by the fast decoder where it agrees.

    Raises `ImageError` as `decode_image` does.
    """
    return EncodedImage(data).pixels(preprocess)


class EncodedImage:
    """An image file of which only the header has been read and held against the bounds.

    It is decoded once, by `decode` or by `pixels`; parameters and errors are those of `decode_image`.
    """

    def __init__(self, data: bytes, max_pixels: int = MAX_PIXELS) -> None:
        self.data = data
        self.header = _read_header(data)
        width, height = self.header.size
        if width * height > max_pixels:
            raise ImageError(
                f"has {width} × {height} = {width * height / 1e6:.0f} megapixels; "
                f"the limit is {max_pixels / 1e6:.0f}"
            )
        if self.header.info.get("progressive"):  # elsewhere, time is bound by the file's length
            scans = data.count(b"\xff\xda")
            if scans * width * height > MAX_SCANNED:
                raise ImageError(
                    f"is a progressive JPEG of {scans} scans, which would take minutes to decode"
                )

    @property
    def memory(self) -> int:
        """Bytes that decoding takes at most: Pillow keeps 4 a pixel, and a copy to convert."""
        return 8 * self.header.width * self.header.height

    def decode(self, mode: str) -> Image.Image:
        """The image by Pillow, upright and in `mode`."""
        with parsing("is damaged"):
            self.header.load()
        orientation = self._orientation()
        with parsing("cannot be converted"):
            image = to_mode(self.header, mode)
        return image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image

    def pixels(self, preprocess: Preprocess) -> np.ndarray:
        """(size, size, C) uint8 pixels by the fast decoder where it agrees, by Pillow elsewhere."""
        fast = self._fast_pixels(preprocess) if self._agrees(preprocess) else None
        return preprocess(self.decode(preprocess.mode)) if fast is None else fast

    def _orientation(self) -> int:
        """EXIF orientation 1…8; 1 where the EXIF is unreadable, which is no reason to lose a photograph."""
        try:
            with parsing("has unreadable EXIF"):
                return self.header.getexif().get(_ORIENTATION, 1)
        except ImageError:
            return 1

    def _agrees(self, preprocess: Preprocess) -> bool:
        """True where torchvision gives the pixels that Pillow gives."""
        modes = (self.header.mode, preprocess.mode)
        return (
            isinstance(self.header, JpegImagePlugin.JpegImageFile)
            and modes in (("RGB", "RGB"), ("L", "L"), ("L", "RGB"))
            and preprocess.interpolation in ("bilinear", "bicubic")
            and max(self.header.size) < ELONGATED * min(self.header.size)
        )

    def _fast_pixels(self, preprocess: Preprocess) -> np.ndarray | None:
        """Pixels by torchvision, or None where it refuses the file: the verdict on that is Pillow's."""
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg

        data = torch.frombuffer(bytearray(self.data), dtype=torch.uint8)
        mode = ImageReadMode.RGB if preprocess.mode == "RGB" else ImageReadMode.GRAY
        try:
            pixels = decode_jpeg(data, mode=mode)  # (C, H, W)
        except RuntimeError:
            return None
        pixels = _upright(pixels, self._orientation())
        to = preprocess.geometry(*pixels.shape[1:])
        pixels = torch.nn.functional.interpolate(
            pixels[None], (to.height, to.width), mode=preprocess.interpolation, antialias=True
        )[0]
        pixels = pixels[:, to.top : to.top + preprocess.size, to.left : to.left + preprocess.size]
        return pixels.permute(1, 2, 0).contiguous().numpy()


def _read_header(data: bytes) -> Image.Image:
    """Open an image without decoding any pixel."""
    if not data:
        raise ImageError("is empty (0 bytes)")
    with parsing("cannot be opened"):
        try:
            return Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.UnidentifiedImageError:
            start = bytes(data[:8])
            raise ImageError(f"is not an image of a known format (it begins with {start!r})") from None


def _upright(pixels, orientation: int):
    """Apply an EXIF orientation to a (C, H, W) tensor."""
    if 5 <= orientation <= 8:
        pixels = pixels.transpose(1, 2)
    flipped = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation)
    return pixels.flip(flipped) if flipped else pixels
