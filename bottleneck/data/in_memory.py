"""Images that are handed over one by one, as paths, PIL images or arrays: each is named by its content.

Shapes: n samples, M images per sample, I distinct images, H × W pixels.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from bottleneck.data.source import Source
from bottleneck.data.storage import LocalFiles
from bottleneck.errors import ImageError, SourceError
from bottleneck.files import FileStat
from bottleneck.samples import SampleTable

ROOT = "content:"  # of a source whose keys are sha256 sums
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
ORIENTATION = 0x0112  # tag of EXIF
COLOUR = (3, 4)  # channels

OneImage = str | os.PathLike[str] | Image.Image | np.ndarray


class ContentFiles(LocalFiles):
    """Bytes of images by the hexadecimal sha256 of their content. Reading relative paths is from `folder`.

    Attributes
    ----------
    readers : callables that return the bytes, by key.
    """

    def __init__(self, folder: str | os.PathLike[str] = ".") -> None:
        super().__init__(folder)
        self.readers: dict[str, Callable[[], bytes]] = {}

    def add(self, image: OneImage) -> str:
        """Return the key of an image, whose content is read. Raises ImageError or OSError."""
        if isinstance(image, str | os.PathLike):
            read = partial(LocalFiles.read, self, os.fspath(image))
        else:
            read = partial(encoded, image)
        key = hashlib.sha256(read()).hexdigest()
        self.readers.setdefault(key, read)
        return key

    def read(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        """Return the bytes of an image. Raises ImageError where only its rows are known."""
        if key not in self.readers:
            raise ImageError("is not among the images at hand", passing=True)
        data = self.readers[key]()
        return data[start:] if size is None else data[start : start + size]

    def stat(self, key: str) -> FileStat:
        """Return a version tag made of the content, so that an image with rows is never read again."""
        return FileStat(0, -1, -1, int(key[:15], 16))

    def missing(self, keys: Iterable[str]) -> dict[str, str]:
        return {}


def content_source(files: ContentFiles, cached: Iterable[str] = ()) -> Source:
    """Return a source of the images of `files`, and of those whose rows a cache has, by key."""
    keys = tuple(sorted({*files.readers, *cached}))
    samples = SampleTable(
        key=np.array(keys, object),
        image=np.arange(len(keys))[:, None],
        split=np.full(len(keys), "train", object),
    )
    return Source(ROOT, keys, samples, 0, {}, files)


def as_images(X: Any) -> np.ndarray:
    """Return images as an object array (n, M) of paths, PIL images and arrays.

    Parameters
    ----------
    X : a list or column of images, (n,); a table of paths, (n, M); or uint8 pixels (n, H, W) or (n, H, W, C)

    Raises
    ------
    SourceError
        X is one image instead of several, or contains something else.
    """
    if isinstance(X, str | os.PathLike | Image.Image):
        raise SourceError("X is one image; expected a list of images.", "Put it into a list: [image].")
    values = X.to_numpy() if hasattr(X, "to_numpy") else X
    if isinstance(values, np.ndarray) and values.dtype.kind not in "OUS":
        if values.ndim not in (3, 4):
            raise SourceError(
                f"X is an array of shape {values.shape}; expected pixels (n, H, W) or (n, H, W, C), or paths."
            )
        values = list(values)
    if isinstance(values, np.ndarray) and values.ndim > 1:
        rows = [list(row) for row in values]
    else:
        rows = [[image] for image in values]
    if len({len(row) for row in rows}) > 1 or (rows and not rows[0]):
        raise SourceError("X has samples of different numbers of images; expected the same number in each.")
    images = np.empty((len(rows), len(rows[0]) if rows else 1), object)
    for i, row in enumerate(rows):
        for m, image in enumerate(row):
            if not isinstance(image, str | os.PathLike | Image.Image | np.ndarray):
                raise SourceError(
                    f"Sample {i} of X is a {type(image).__name__}; expected a path, a PIL image or an array."
                )
            images[i, m] = image
    return images


def described(image: OneImage, sample: int) -> str:
    """Return what an error calls an image: its path, or its number."""
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    return f"image {sample} of X"


def encoded(image: Image.Image | np.ndarray) -> bytes:
    """Return an image in memory as the bytes of a file without loss: PNG, or TIFF for what PNG cannot hold.

    The orientation that EXIF states is kept, so that an opened photograph is turned as its file is.

    Raises
    ------
    ImageError
        An array is not of 8 or 16 bits, or not of the shape (H, W) or (H, W, C).
    """
    picture = image if isinstance(image, Image.Image) else _picture(image)
    out = io.BytesIO()
    exif = Image.Exif()
    if turned := picture.getexif().get(ORIENTATION):
        exif[ORIENTATION] = turned
    kind = "PNG" if picture.mode in PNG_MODES else "TIFF"
    try:
        picture.save(out, kind, exif=exif if turned else b"", compress_level=0)
    except (OSError, ValueError, KeyError) as error:
        raise ImageError(f"has mode {picture.mode}, which no file without loss holds: {error}") from error
    return out.getvalue()


def _picture(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    colour = pixels.ndim == 3 and pixels.shape[2] in COLOUR and pixels.dtype == np.uint8
    grey = pixels.ndim == 2 and pixels.dtype in (np.uint8, np.uint16)
    if not (colour or grey) or not pixels.size:
        raise ImageError(
            f"is an array of {pixels.dtype} of shape {pixels.shape}; expected uint8 (H, W), (H, W, 3) or "
            "(H, W, 4), or uint16 (H, W)"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))
