"""Numbers that tell dark, blank, blurred, tiny and oblong images, from pixels that are decoded in any case.

They are taken from what the network sees, the resized and cut pixels, on every `LINE`-th row and column:
about 6,000 of 50,000 pixels. Where an image was enlarged, its pixels are taken as far apart as they were.
The images of a batch are measured together, which takes half the time; none depends on the others.

Shapes: B images, H, W height and width, C channels, R lines, N pixels of an image that are looked at.
"""

from __future__ import annotations

import numpy as np

from bottleneck.data.preprocess import Preprocess
from bottleneck.names import MEASURES

LINE = 8  # rows, and columns, of which one is looked at
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of RGB, ITU-R BT.601
LEVELS = 256


def measure(pixels: np.ndarray, sizes: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Return `names.MEASURES` of images, (B, 7) float32.

    width, height : of the file, in pixels. low, high : the 5th and the 99th percentile of the brightness, 0
    to 255. entropy : of the histogram of brightness, 0 to 8 bits. contrast : variance of the brightness.
    sharpness : variance of its second differences along rows and columns, over the contrast.

    Parameters
    ----------
    pixels : (B, H, W, C) uint8, as `preprocess` makes them; an alpha channel is not looked at
    sizes : (B, 2) int, width and height of each file, in pixels
    """
    across, down = _brightness(pixels[:, ::LINE]), _brightness(_columns(pixels))
    values = across.reshape(len(across), -1)
    counts = _histograms(values)
    shares, below = counts / values.shape[1], counts.cumsum(axis=1) / values.shape[1]
    low, high = ((below < share).sum(axis=1) for share in (0.05, 0.99))
    logarithms = np.log2(shares, where=shares > 0, out=np.zeros_like(shares))
    entropy = abs((shares * logarithms).sum(axis=1))
    contrast = values.var(axis=1)
    bends = np.zeros(len(values), np.float32)
    apart = np.maximum(1, np.round(preprocess.resize / np.maximum(1, sizes.min(axis=1)))).astype(int)
    for step in np.unique(apart):
        chosen = apart == step
        bends[chosen] = sum(_bend(lines[chosen, :, ::step]) for lines in (across, down)) / 2
    sharpness = np.divide(bends, contrast, where=contrast > 0, out=np.zeros_like(contrast))
    found = np.column_stack([sizes, low, high, entropy, contrast, sharpness]).astype(np.float32)
    assert found.shape[1] == len(MEASURES)
    return found


def _columns(pixels: np.ndarray) -> np.ndarray:
    """Return every `LINE`-th column of (B, H, W, C) as lines (B, R, H, C).

    They are taken by their places in a row: a slice is copied one pixel at a time, which is slower.
    """
    images, height, width, channels = pixels.shape
    places = np.arange(0, width, LINE)[:, None] * channels + np.arange(channels)
    taken = pixels.reshape(images, height, -1).take(places.ravel(), axis=2)
    return taken.reshape(images, height, -1, channels).swapaxes(1, 2)


def _brightness(pixels: np.ndarray) -> np.ndarray:
    """Return the brightness of lines (B, R, W, C) uint8 as (B, R, W) float32."""
    lines: np.ndarray = pixels[..., :3].astype(np.float32)
    return lines @ LUMA if lines.shape[3] == 3 else lines[..., 0]


def _histograms(values: np.ndarray) -> np.ndarray:
    """Return how often each level is among values (B, N) from 0 to 255, cut to integers: (B, 256) int."""
    images = len(values)
    levels = values.astype(np.intp) + LEVELS * np.arange(images)[:, None]
    return np.bincount(levels.ravel(), minlength=images * LEVELS).reshape(images, LEVELS)


def _bend(lines: np.ndarray) -> np.ndarray:
    """Return the variance (B,) of second differences along lines (B, R, W); 0 for fewer than 3 pixels."""
    if lines.shape[2] < 3:
        return np.zeros(len(lines), np.float32)
    bend: np.ndarray = lines[:, :, 2:] - 2 * lines[:, :, 1:-1] + lines[:, :, :-2]
    return np.square(bend).reshape(len(bend), -1).mean(axis=1)
