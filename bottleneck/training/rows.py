"""Where the network's inputs come from: cached feature maps or pixels, one row per image.

Shapes: I images, V views.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np


class Rows(Protocol):
    """Feature maps or pixels by image. `shape`: (I, …) of all rows; `dtype`: as they are stored."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def take(self, images: np.ndarray) -> np.ndarray:
        """(n, …) rows of `images` (n,), in that order."""
        ...


@runtime_checkable
class DrawnRows(Protocol):
    """Rows that are other ones in every epoch, but the same ones whenever the epoch is the same."""

    def start_epoch(self, epoch: int) -> None:
        """Go over to the rows of `epoch`."""
        ...


class Resident:
    """Rows of some images, read once and held in memory."""

    def __init__(self, rows: Rows, images: np.ndarray) -> None:
        self.shape, self.dtype = rows.shape, rows.dtype
        self.images = np.unique(images)
        self.values = rows.take(self.images)

    def take(self, images: np.ndarray) -> np.ndarray:
        """Rows of `images`, each one of those that are held."""
        return self.values[np.searchsorted(self.images, images)]


class DrawnViews:
    """One of the V cached views of each image, drawn anew in every epoch.

    views : Rows of shape (I, V, …).
    """

    def __init__(self, views: Rows, seed: int) -> None:
        self.views, self.seed = views, seed
        self.shape = (views.shape[0], *views.shape[2:])
        self.dtype = views.dtype
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Draw a view for every image."""
        generator = np.random.default_rng([self.seed, epoch, 1])
        self.choice = generator.integers(self.views.shape[1], size=self.shape[0])

    def take(self, images: np.ndarray) -> np.ndarray:
        """The drawn view of each image."""
        return self.views.take(images)[np.arange(len(images)), self.choice[images]]


def row_bytes(rows: Rows) -> int:
    """Bytes that one image's row takes while it is read; with views, all of them."""
    if isinstance(rows, DrawnViews):
        return row_bytes(rows.views)
    return int(np.prod(rows.shape[1:])) * np.dtype(rows.dtype).itemsize


def in_memory(rows: Rows) -> bool:
    """Whether a row costs no reading."""
    return isinstance(rows.views if isinstance(rows, DrawnViews) else rows, Resident)


def hold(rows: Rows, images: np.ndarray, memory: int) -> Rows:
    """`rows` read into memory where those of `images` fit `memory` bytes; else `rows` as they are."""
    if isinstance(rows, DrawnViews):
        held = hold(rows.views, images, memory)
        return DrawnViews(held, rows.seed)
    if isinstance(rows, DrawnRows) or len(np.unique(images)) * row_bytes(rows) > memory:
        return rows
    return Resident(rows, images)
