"""Resize and cut uint8 pixels with torch's antialiased kernel: Pillow's algorithm, vectorised.

Pixels differ from Pillow's by one grey level here and there. torch is imported only for this, and neither for
images that have the size already nor for a few small ones, which `antialias` resizes to the same pixels.

Shapes: H, W height and width, C channels.
"""

from __future__ import annotations

import sys
import time
from threading import Lock
from typing import Any

import numpy as np

from bottleneck.data.antialias import resized as resized_without_torch
from bottleneck.data.antialias import suffices
from bottleneck.data.modes import as_image
from bottleneck.data.preprocess import ELONGATED, Preprocess
from bottleneck.threads import one_torch_thread


def fast_pixels(
    pixels: np.ndarray, preprocess: Preprocess, stored: tuple[int, int] | None = None
) -> np.ndarray:
    """Resize and cut (H, W, C) uint8 to (size, size, C), with torch where possible, else with Pillow.

    pixels : in the mode of `preprocess`. stored : height and width of the whole image, of which the pixels
    may be 1/2, 1/4 or 1/8, rounded up; what is cut is counted from these.
    """
    height, width, _ = pixels.shape
    if not _torch_can_resize(height, width, preprocess):
        return preprocess(as_image(pixels))
    to = preprocess.geometry(*(stored or (height, width)))
    same = (to.height, to.width) == (height, width)  # the kernel would copy the pixels
    resized = pixels if same else _resized(pixels, to.height, to.width, preprocess.interpolation)
    cut = resized[to.top : to.top + preprocess.size, to.left : to.left + preprocess.size]
    return np.array(cut, order="C")


def _resized(pixels: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """Return (H, W, C) uint8 as (height, width, C)."""
    if "torch" not in sys.modules and suffices(*pixels.shape[:2]):
        return resized_without_torch(pixels, height, width, interpolation)
    torch = _torch()
    batch = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))[None].permute(0, 3, 1, 2)
    with one_torch_thread():
        resized = torch.nn.functional.interpolate(batch, (height, width), mode=interpolation, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


class _Importing:
    """torch, which the first of several threads imports while the others wait.

    seconds : that the import took in this process; 0 where torch was there.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = Lock()

    def __call__(self) -> Any:
        with self._lock:
            started = time.perf_counter()
            import torch

            self.seconds += time.perf_counter() - started
        return torch


_torch = _Importing()


def import_seconds() -> float:
    """Return the seconds that this process has spent on importing torch for a resize."""
    return _torch.seconds


def _torch_can_resize(height: int, width: int, preprocess: Preprocess) -> bool:
    return (
        preprocess.mode in ("RGB", "L")  # alpha needs premultiplying
        and preprocess.interpolation in ("bilinear", "bicubic")
        and max(height, width) < ELONGATED * min(height, width)  # a whole strip would take gigabytes
    )
