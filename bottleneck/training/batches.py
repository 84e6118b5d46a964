"""Samples in batches, epoch after epoch, from rows that need not fit in memory.

    order of the epoch ──► windows of whole batches that fit the budget ──► rows, read ahead ──► batches

The order of an epoch depends on the seed and the epoch alone, so a run that was killed goes on with the same
one. Rows that fit in memory are shuffled freely. Of rows that do not, runs of neighbouring samples are
shuffled, and then the samples within each window, so that the disk is read in long strokes.

Shapes: n samples of this set, M images per sample, P covariates, B samples of a batch.

Where the network's inputs come from: cached feature maps or pixels, one row per image.

Shapes: I images, V views.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from bottleneck.errors import FitError


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


RUN = 64  # neighbouring samples that are moved together where rows do not fit in memory
DEFAULT_MEMORY = 1 << 30


@dataclass(frozen=True)
class Batch:
    """rows : (B, M, …) as stored, covariates : (B, P) float32, labels : (B,) int64."""

    rows: Tensor
    covariates: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return Batch(
            *(part.to(device, non_blocking=True) for part in (self.rows, self.covariates, self.labels))
        )


@dataclass(frozen=True)
class SampleSet:
    """Samples that are trained on, or measured.

    image : (n, M) int64, rows of `Rows`. covariates : (n, P). labels : (n,) int64.
    """

    image: np.ndarray
    covariates: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


class Batches:
    """Batches of `samples`, the same in every run with the same seed.

    Parameters
    ----------
    rows : Rows
    samples : SampleSet
    size : int
        Samples in a batch at most. An epoch is dealt out evenly, so that no batch is too small for a
        BatchNorm: batches differ by one sample.
    seed : int
    shuffle : bool
        A new order in each epoch.
    memory : int
        Bytes that rows may take.
    """

    def __init__(
        self,
        rows: Rows,
        samples: SampleSet,
        size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        memory: int = DEFAULT_MEMORY,
    ) -> None:
        if not len(samples):
            raise FitError("There are no labelled samples to train on or to measure.")
        self.rows = hold(rows, samples.image, memory)
        self.samples, self.size, self.seed, self.shuffle = samples, size, seed, shuffle
        self.steps = -(-len(samples) // size)
        if in_memory(self.rows):
            self.window_steps = 1
        else:  # one window in use and one being read
            sample_bytes = row_bytes(rows) * samples.image.shape[1]
            self.window_steps = max(1, memory // 2 // (sample_bytes * size))

    def __len__(self) -> int:
        return len(self.samples)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from `first_step` on."""
        if isinstance(self.rows, DrawnRows):
            self.rows.start_epoch(epoch)
        order = self.order(epoch)
        if in_memory(self.rows):
            for step in range(first_step, self.steps):
                chosen = order[self._bounds(step)]
                image = self.samples.image[chosen]
                rows = self.rows.take(image.ravel())
                yield self._batch(chosen, rows.reshape(*image.shape, *rows.shape[1:]))
        else:
            yield from self._from_disk(order, first_step)

    def order(self, epoch: int) -> np.ndarray:
        """(n,) indices of samples in the order of `epoch`."""
        n = len(self.samples)
        if not self.shuffle:
            return np.arange(n)
        generator = np.random.default_rng([self.seed, epoch])
        if in_memory(self.rows):
            return generator.permutation(n)
        along_disk = np.argsort(self.samples.image[:, 0], kind="stable")
        runs = np.split(along_disk, np.arange(RUN, n, RUN))
        order = np.concatenate([runs[i] for i in generator.permutation(len(runs))])
        for window in self._windows():
            generator.shuffle(order[self._bounds(window[0]).start : self._bounds(window[-1]).stop])
        return order

    def _from_disk(self, order: np.ndarray, first_step: int) -> Iterator[Batch]:
        """Batches window by window; while one window is used, a thread reads the next."""

        def read(window: range) -> tuple[np.ndarray, np.ndarray]:
            chosen = order[self._bounds(window[0]).start : self._bounds(window[-1]).stop]
            images = np.unique(self.samples.image[chosen])
            return images, self.rows.take(images)

        windows = [window for window in self._windows() if window[-1] >= first_step]
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead = reader.submit(read, windows[0]) if windows else None
            for i, window in enumerate(windows):
                images, values = ahead.result()
                ahead = reader.submit(read, windows[i + 1]) if i + 1 < len(windows) else None
                for step in window[max(0, first_step - window[0]) :]:
                    chosen = order[self._bounds(step)]
                    places = np.searchsorted(images, self.samples.image[chosen])
                    yield self._batch(chosen, values[places])

    def _batch(self, chosen: np.ndarray, rows: np.ndarray) -> Batch:
        return Batch(
            torch.from_numpy(rows),
            torch.from_numpy(self.samples.covariates[chosen].astype(np.float32)),
            torch.from_numpy(self.samples.labels[chosen].astype(np.int64)),
        )

    def _windows(self) -> list[range]:
        """Steps that are read together."""
        return [
            range(first, min(first + self.window_steps, self.steps))
            for first in range(0, self.steps, self.window_steps)
        ]

    def _bounds(self, step: int) -> slice:
        """Places in the order that batch `step` takes: even shares."""
        n = len(self.samples)
        return slice(step * n // self.steps, (step + 1) * n // self.steps)
