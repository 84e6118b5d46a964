"""Read the header of an image file of any supported format, before anything is decoded."""

from __future__ import annotations

import io
import re
import struct
import zlib
from importlib.util import find_spec

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

from bottleneck.data.untrusted import parsing
from bottleneck.errors import ImageError

FORMATS: tuple[str, ...] = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
if features.check("avif"):
    from PIL import AvifImagePlugin  # noqa: F401

    FORMATS += ("AVIF",)
if find_spec("pillow_heif"):  # the extra "heif"
    import pillow_heif  # type: ignore[import-not-found]  # optional

    pillow_heif.register_heif_opener()
    FORMATS += ("HEIF",)
MAX_EXIF = 500_000  # bytes of EXIF that is stored as a PNG's text

_PNG = b"\x89PNG\r\n\x1a\n"
_TEXT_CHUNKS = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")
_PHOTOMETRIC, _WHITE_IS_ZERO, _BLACK_IS_ZERO = 262, 0, 1
for _form, _modes in [*TiffImagePlugin.OPEN_INFO.items()]:  # Pillow lacks some grey forms where 0 is white
    if _form[1] == _BLACK_IS_ZERO and _form[4][0] > 8:
        TiffImagePlugin.OPEN_INFO.setdefault((_form[0], _WHITE_IS_ZERO, *_form[2:]), _modes)


def read_header(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
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
            raise too_large(size, min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))) from None


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


def too_large(size: str, allowed: int) -> ImageError:
    """Return the error of an image of `size`, in words, where `allowed` pixels are the most."""
    return ImageError(f"has {size}, and {allowed:,} are allowed: scale it down")
