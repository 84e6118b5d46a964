"""Resize uint8 pixels as torch's antialiased kernel does, to the bit, with NumPy: for few images.

torch takes two seconds of a core to import, and then a small part of the time of this. Its kernel (Pillow's
algorithm in fixed point) resizes along rows, rounds to uint8, and resizes along columns. Weights are integers
of 16 bits, scaled by the greatest power of two that they allow; sums are rounded half up. The sums are
integers below 2^24 or 2^53, so products of floats have them exactly.

Shapes: H, W height and width, C channels; n pixels of a line that become m.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from bottleneck.processor import vector_units
from bottleneck.threads import one_blas_thread

FEW = 32  # images of a process
MOST_PIXELS = 1_000_000  # of one image; for larger ones the time of each is near that of the import
BLOCK = 256  # lines at a time: they stay in a core's cache
REACH = {"bilinear": 1.0, "bicubic": 2.0}  # of a filter to each side, in pixels of the coarser grid
CUBIC = -0.5  # the parameter of the bicubic filter, as Pillow has it
_BITS, _MOST_BITS = 15, 22  # of a weight without its sign, and of the scale
_left = [FEW]  # images that this process may still resize so


def expect(images: int) -> None:
    """Leave resizing to torch from now on where more than `FEW` images are to come: its import pays."""
    if images > FEW:
        _left[0] = 0


def suffices(height: int, width: int) -> bool:
    """Whether NumPy is to resize an image of this size, where torch is not yet imported.

    The equality with torch was tested on processors with AVX2; others leave it to torch. So does a process
    that has resized `FEW` images, one by one or in small batches.
    """
    return _left[0] > 0 and height * width <= MOST_PIXELS and "avx2" in (vector_units() or ())


def resized(pixels: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """Return (H, W, C) uint8 as (height, width, C). interpolation : "bilinear" or "bicubic"."""
    old_height, old_width, _ = pixels.shape
    with one_blas_thread():
        _left[0] -= 1
        if width != old_width:
            pixels = _along(pixels.transpose(0, 2, 1), width, interpolation).transpose(0, 2, 1)
        if height != old_height:
            pixels = _along(pixels.transpose(1, 2, 0), height, interpolation).transpose(2, 0, 1)
    return pixels


def _along(lines: np.ndarray, m: int, interpolation: str) -> np.ndarray:
    """Return lines (…, n) uint8 as (…, m)."""
    *shape, n = lines.shape
    weights, bits = _weights(n, m, interpolation)
    half, largest = 2.0 ** (bits - 1), 255 * np.abs(weights).sum(axis=1).max()
    dtype: DTypeLike = np.float32 if largest + half < 2**24 else np.float64
    flat = np.ascontiguousarray(lines).reshape(-1, n)
    by: np.ndarray = weights.T.astype(dtype)
    out = np.empty((len(flat), m), np.uint8)
    for start in range(0, len(flat), BLOCK):
        part: np.ndarray = flat[start : start + BLOCK].astype(dtype)
        sums = part @ by
        sums += half
        sums *= 2.0**-bits
        out[start : start + BLOCK] = np.floor(sums, out=sums).clip(0, 255, out=sums)
    return out.reshape(*shape, m)


def _weights(n: int, m: int, interpolation: str) -> tuple[np.ndarray, int]:
    """Return integer weights (m, n) float64 of n pixels for each of m, and the bits of their scale."""
    scale = n / m
    reach = REACH[interpolation] * max(scale, 1.0)
    centre = scale * (np.arange(m) + 0.5)
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + reach + 0.5).astype(np.int64), n) - first
    tap = np.arange(max(1, count.max()))
    distance = np.abs(tap + first[:, None] - centre[:, None] + 0.5) / max(scale, 1.0)
    real = np.where(tap < count[:, None], _filter(distance, interpolation), 0.0)
    real /= real.sum(axis=1, keepdims=True)
    bits = 0
    while bits < _MOST_BITS and int(0.5 + real.max() * 2 ** (bits + 1)) < 1 << _BITS:
        bits += 1
    whole = np.trunc(real * 2**bits + np.where(real < 0, -0.5, 0.5))
    weights = np.zeros((m, n))
    rows, columns = np.arange(m)[:, None], np.minimum(first[:, None] + tap, n - 1)
    np.add.at(weights, (rows, columns), whole)  # beyond the end of a line they are 0
    return weights, bits


def _filter(distance: np.ndarray, interpolation: str) -> np.ndarray:
    """Return the value of the filter at distances of 0 and more."""
    d, a = distance, CUBIC
    if interpolation == "bilinear":
        return np.maximum(1 - d, 0)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = (((d - 5) * d + 8) * d - 4) * a
    return np.where(d < 1, near, np.where(d < 2, far, 0))
