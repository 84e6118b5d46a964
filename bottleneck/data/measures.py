"""Numbers that tell dark, blank, blurred, tiny and oblong images, from pixels that are decoded in any case.

They are taken from what the network sees, the resized and cut pixels, on every `LINE`-th row and column:
about 6,000 of 50,000 pixels. Where the image was enlarged, its pixels are taken as far apart as they were.

Shapes: H, W height and width, C channels, R lines.
"""

from __future__ import annotations

import numpy as np

from bottleneck.data.preprocess import Preprocess
from bottleneck.names import MEASURES

LINE = 8  # rows, and columns, of which one is looked at
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of RGB, ITU-R BT.601


def measure(pixels: np.ndarray, size: tuple[int, int], preprocess: Preprocess) -> np.ndarray:
    """Return `names.MEASURES` of one image, (7,) float32.

    width, height : of the file, in pixels. low, high : the 5th and the 99th percentile of the brightness, 0
    to 255. entropy : of the histogram of brightness, 0 to 8 bits. contrast : variance of the brightness.
    sharpness : variance of its second differences along rows and columns, over the contrast.

    Parameters
    ----------
    pixels : (H, W, C) uint8, as `preprocess` makes them; an alpha channel is not looked at
    size : width and height of the file, in pixels
    """
    apart = max(1, round(preprocess.resize / max(1, min(size))))
    across, down = _brightness(pixels[::LINE]), _brightness(pixels[:, ::LINE].swapaxes(0, 1))
    counts = np.bincount(across.ravel().astype(np.uint8), minlength=256)
    below = counts.cumsum() / across.size
    low, high = np.searchsorted(below, (0.05, 0.99))
    shares = counts[counts > 0] / across.size
    contrast = float(across.var())
    bends = [float(np.square(_bend(lines[:, ::apart])).mean()) for lines in (across, down)]
    sharpness = sum(bends) / 2 / contrast if contrast > 0 else 0.0
    entropy = float(-(shares * np.log2(shares)).sum())
    values = (*size, low, high, abs(entropy), contrast, sharpness)
    assert len(values) == len(MEASURES)
    return np.array(values, np.float32)


def _brightness(pixels: np.ndarray) -> np.ndarray:
    """Return the brightness of lines (R, W, C) uint8 as (R, W) float32."""
    lines: np.ndarray = pixels[..., :3].astype(np.float32)
    return lines @ LUMA if lines.shape[2] == 3 else lines[..., 0]


def _bend(lines: np.ndarray) -> np.ndarray:
    """Return the second differences (R, W − 2) of lines (R, W); zeros of lines of fewer than 3 pixels."""
    if lines.shape[1] < 3:
        return np.zeros((1, 1), np.float32)
    bend: np.ndarray = lines[:, 2:] - 2 * lines[:, 1:-1] + lines[:, :-2]
    return bend
