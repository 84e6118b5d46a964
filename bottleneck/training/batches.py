"""Samples in batches, epoch after epoch, from rows of images that need not fit in memory.

    order of the epoch ──► windows of whole batches that fit the budget ──► rows, read ahead ──► batches

The order of an epoch depends on the seed and the epoch alone, so a run that was killed continues with the
same one. Rows that fit in memory are read once and shuffled freely. Of rows that do not fit, runs of
neighbouring samples are shuffled, and then the samples within each window, so that the disk is read in long
runs.

Shapes: I images, V views, n samples of this set, M images per sample, P covariates, B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from bottleneck.errors import FitError, Note
from bottleneck.samples import RowReader
from bottleneck.training.config import TrainingConfig

READ_AHEAD = 128  # samples whose rows are made at once, where each epoch has new ones
RUN = 64  # neighbouring samples that are moved together where rows do not fit in memory


@runtime_checkable
class EpochRows(Protocol):
    """Rows that differ from epoch to epoch, but are the same whenever the epoch is the same."""

    def start_epoch(self, epoch: int) -> None:
        """Switch to the rows of `epoch`."""
        ...

    def notes(self) -> tuple[Note, ...]:
        """Return what was decided on the rows that were read."""
        ...


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

    image : (n, M) int64, rows of the images. covariates : (n, P). labels : (n,) int64.
    """

    image: np.ndarray
    covariates: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def batch_count(n: int, size: int, least: int = 1) -> int:
    """Return the number of batches of about `size` samples, none with fewer than `least` of the `n`."""
    return max(1, min(-(-n // size), n // least))


class Batches:
    """Batches of `samples`, the same in every run with the same seed.

    Parameters
    ----------
    rows : RowReader
        Feature maps or pixels by image, (I, …).
    samples : SampleSet
    size : int
        Samples in a batch. The samples of an epoch are divided evenly: batches differ by one sample.
    least : int
        Fewest samples of a batch. Where `size` would give smaller ones, batches have up to size + 1 samples.
    seed : int
    shuffle : bool
        A new order in each epoch.
    memory : int
        Bytes that rows may take.
    draw_views : bool
        The rows are views (I, V, …), of which each epoch draws one per image.
    """

    def __init__(
        self,
        rows: RowReader,
        samples: SampleSet,
        size: int,
        *,
        least: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        memory: int = TrainingConfig.memory,
        draw_views: bool = False,
    ) -> None:
        if not len(samples):
            raise FitError("There are no labelled samples to train on or to measure.")
        self.rows, self.samples, self.size = rows, samples, size
        self.seed, self.shuffle, self.draw_views = seed, shuffle, draw_views
        self.steps = batch_count(len(samples), size, least)
        row_bytes = int(np.prod(rows.shape[1:])) * np.dtype(rows.dtype).itemsize
        self._images = np.unique(samples.image)
        self._fits = not isinstance(rows, EpochRows) and len(self._images) * row_bytes <= memory
        # One window is in use while the next is read.
        most = memory // 2 // (row_bytes * samples.image.shape[1] * size)
        if isinstance(rows, EpochRows):  # made when they are read, which takes long: no order along a disk
            most = min(most, READ_AHEAD // size)
        self._window_steps = max(1, most)
        self._view = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self.samples)

    def preload(self) -> None:
        """Read the rows now if they fit in memory, instead of at the first batch."""
        if self._fits:
            _ = self._held

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch]:
        """Yield the batches of `epoch` from `first_step` on. Closing it ends the reading ahead."""
        if isinstance(self.rows, EpochRows):
            self.rows.start_epoch(epoch)
        if self.draw_views:
            generator = np.random.default_rng([self.seed, epoch, 1])
            self._view = generator.integers(self.rows.shape[1], size=self.rows.shape[0])
        order = self.order(epoch)
        if not self._fits:
            yield from self._from_disk(order, first_step)
            return
        for step in range(first_step, self.steps):
            chosen = order[self._bounds(step)]
            image = self.samples.image[chosen]
            rows = self._take(image.ravel())
            yield self._batch(chosen, rows.reshape(*image.shape, *rows.shape[1:]))

    def order(self, epoch: int) -> np.ndarray:
        """Return the (n,) indices of samples in the order of `epoch`."""
        n = len(self.samples)
        if not self.shuffle:
            return np.arange(n)
        generator = np.random.default_rng([self.seed, epoch])
        if self._fits:
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
            return images, self._take(images)

        windows = [window for window in self._windows() if window[-1] >= first_step]
        reader = ThreadPoolExecutor(max_workers=1)  # in it holds what the user allows, as `urls.allow` says
        try:
            ahead: list[Future[tuple[np.ndarray, np.ndarray]]] = []
            ahead += [reader.submit(copy_context().run, read, window) for window in windows[:1]]
            for i, window in enumerate(windows):
                images, values = ahead.pop().result()
                ahead += [
                    reader.submit(copy_context().run, read, window) for window in windows[i + 1 : i + 2]
                ]
                for step in window[max(0, first_step - window[0]) :]:
                    chosen = order[self._bounds(step)]
                    yield self._batch(chosen, values[np.searchsorted(images, self.samples.image[chosen])])
        finally:
            reader.shutdown(cancel_futures=True)  # a caller that leaves early waits for one window at most

    @cached_property
    def _held(self) -> np.ndarray:
        """Rows of all images of the samples, read once."""
        return self.rows.take(self._images)

    def _take(self, images: np.ndarray) -> np.ndarray:
        """Rows of `images`, of views the one that is drawn for this epoch."""
        held = self._fits
        rows = self._held[np.searchsorted(self._images, images)] if held else self.rows.take(images)
        return rows[np.arange(len(images)), self._view[images]] if self.draw_views else rows

    def _batch(self, chosen: np.ndarray, rows: np.ndarray) -> Batch:
        return Batch(
            torch.from_numpy(rows),
            torch.from_numpy(self.samples.covariates[chosen].astype(np.float32)),
            torch.from_numpy(self.samples.labels[chosen].astype(np.int64)),
        )

    def _windows(self) -> list[range]:
        """Steps that are read together."""
        return [
            range(first, min(first + self._window_steps, self.steps))
            for first in range(0, self.steps, self._window_steps)
        ]

    def _bounds(self, step: int) -> slice:
        """The part of the order that batch `step` takes: even shares."""
        n = len(self.samples)
        return slice(step * n // self.steps, (step + 1) * n // self.steps)
