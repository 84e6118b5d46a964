"""Decode JPEG files in their own mode with simplejpeg: libjpeg-turbo, as in Pillow, and the same pixels.

simplejpeg spares Pillow's detour over four bytes per pixel. At 1/2, 1/4 or 1/8 of its size an image is
computed from the low frequencies of its blocks alone; the other eighths that libjpeg has are slower than 1/1.

Shapes: H, W height and width, C channels.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from PIL import Image, JpegImagePlugin

DCT_SCALES = (1, 2, 4, 8)  # 1/scale of the size, which libjpeg computes with vector units

_COLOUR_SPACES = {"L": "GRAY", "RGB": "RGB"}  # simplejpeg's name of a mode
_CUT_SHORT = "Premature end of JPEG file"  # libjpeg's warning


def jpeg_array(data: bytes, header: Image.Image, mode: str, scale: int = 1) -> np.ndarray | None:
    """Return the (H, W, C) uint8 pixels of a sound JPEG file, or None where Pillow has to decode it.

    Parameters
    ----------
    data : bytes
        The file whose header Pillow read as `header`.
    mode : {"RGB", "L", "RGBA"}
        None is returned unless this is the mode of the file itself.
    scale : one of `DCT_SCALES`; H and W are 1/scale of the stored ones, rounded up.
    """
    if not is_own_jpeg(header, mode):
        return None
    width, height = (-(-side // scale) for side in header.size)
    try:
        pixels = simplejpeg.decode_jpeg(data, _COLOUR_SPACES[mode], **_least(width, height, scale))
    except ValueError:
        return None
    return pixels if pixels.shape[:2] == (height, width) else None


def is_damaged_jpeg(data: bytes, header: Image.Image, mode: str, scale: int = 1) -> bool:
    """Return whether libjpeg reads a JPEG file of this mode with warnings, other than of its missing end.

    header : of the file, which Pillow has decoded at `scale`. It is read at that part of its size, for which
    memory is reserved: warnings are of the file's bytes, whatever the scale.
    """
    if not is_own_jpeg(header, mode):
        return False
    least = _least(*header.size, scale)
    try:
        simplejpeg.decode_jpeg(data, _COLOUR_SPACES[mode], **least)
    except ValueError as warning:
        if _CUT_SHORT in str(warning):
            return False
        with suppress(ValueError):
            return bool(simplejpeg.decode_jpeg(data, _COLOUR_SPACES[mode], strict=False, **least).size)
    return False


def _least(width: int, height: int, scale: int) -> dict[str, int]:
    """Return simplejpeg's options for an image of this size, 1/scale of the stored one."""
    return {"min_width": width, "min_height": height} if scale > 1 else {}


def is_own_jpeg(header: Image.Image, mode: str) -> bool:
    """Return whether an image is a JPEG whose own mode is `mode`, which simplejpeg decodes."""
    return (
        isinstance(header, JpegImagePlugin.JpegImageFile) and mode == header.mode and mode in _COLOUR_SPACES
    )


def several_scans(data: bytes, header: JpegImagePlugin.JpegImageFile) -> bool:
    """Return whether libjpeg keeps the coefficients of the whole image, since its scans come one by one."""
    if header.info.get("progressive"):
        return True
    start = header.fp.tell() if header.fp else 0  # Pillow stops behind the header of the first scan
    at = data.rfind(b"\xff\xda", max(0, start - 16), start)
    return at < 0 or data[at + 4] < len(header.layer)
