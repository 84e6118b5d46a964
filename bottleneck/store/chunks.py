"""Read rows of features chunk by chunk; each chunk is compared with its checksum (FORMAT.md, 5.16 to 5.19).

Shapes: N rows of a dataset, C chunks, n rows of one chunk, B rows of one read.
"""

from __future__ import annotations

import zlib
from itertools import pairwise
from math import prod

import h5py
import numpy as np

from bottleneck.store.layout import checksum, row_bytes


class DamagedChunk(Exception):
    """The rows start … stop−1 of a dataset cannot be read or do not match their checksum."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__(f"rows {start} to {stop - 1} do not match their checksum")
        self.start, self.stop = start, stop


class CheckedRows:
    """The rows of one dataset, each chunk compared with its checksum whenever it is read.

    Parameters
    ----------
    dataset : the dataset (N, …)
    sums : (C,) int64, crc32 of each chunk's rows; None in a file that was written without them. Then HDF5's
        own check counts, and a chunk of zeros is believed only if the whole dataset matches its sha256.
    """

    def __init__(self, dataset: h5py.Dataset, sums: np.ndarray | None) -> None:
        self._dataset, self._sums = dataset, sums
        self._step = dataset.chunks[0] if dataset.chunks else 1  # an empty dataset has no chunks
        self._row_bytes = row_bytes(dataset)
        self._last: tuple[int, np.ndarray] | None = None  # number and rows of the chunk read last
        self._whole: bool | None = None  # whether the sha256 matches, once it was compared

    def fill(self, out: np.ndarray, target: np.ndarray, rows: np.ndarray) -> None:
        """Set out[target] to the rows `rows` (B,), which ascend. Raises DamagedChunk."""
        numbers = rows // self._step
        bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(rows)]
        for start, stop in pairwise(bounds) if len(rows) else ():
            number = int(numbers[start])
            source, to = rows[start:stop] - number * self._step, target[start:stop]
            chunk = self._chunk(number)
            if _consecutive(source) and _consecutive(to):  # the usual case needs no copy of indices
                out[to[0] : to[-1] + 1] = chunk[source[0] : source[-1] + 1]
            else:
                out[to] = chunk[source]

    def damaged(self) -> np.ndarray:
        """Return the numbers of all rows whose chunk is damaged; every row, if it is unknown which are."""
        if self._sums is None and self._matches_sha256():
            return np.zeros(0, np.int64)
        bad = []
        for number in range(-(-len(self._dataset) // self._step)):
            try:
                self._chunk(number)
            except DamagedChunk as error:
                bad.append(np.arange(error.start, error.stop))
        if not bad and self._sums is None:
            return np.arange(len(self._dataset))
        return np.concatenate(bad) if bad else np.zeros(0, np.int64)

    def _chunk(self, number: int) -> np.ndarray:
        """Return the rows (n, …) of one chunk. Raises DamagedChunk."""
        last = self._last
        if last is not None and last[0] == number:
            return last[1]
        start = number * self._step
        stop = min(len(self._dataset), start + self._step)
        try:
            rows = self._read(start, stop) if self._sums is None else self._read_raw(start, stop, number)
        except (OSError, RuntimeError, ValueError):
            rows = None
        if rows is None:
            raise DamagedChunk(start, stop)
        self._last = number, rows
        return rows

    def _read_raw(self, start: int, stop: int, number: int) -> np.ndarray | None:
        """Return the rows if their crc32 is right. HDF5's check, which would cost as much, is left out."""
        assert self._sums is not None
        shape = (stop - start, *self._dataset.shape[1:])
        skipped_filters, stored = self._dataset.id.read_direct_chunk((start, *(0 for _ in shape[1:])))
        rows = memoryview(stored)[: shape[0] * self._row_bytes]
        if skipped_filters or zlib.crc32(rows) != self._sums[number]:
            return None
        return np.frombuffer(rows, self._dataset.dtype, prod(shape)).reshape(shape)

    def _read(self, start: int, stop: int) -> np.ndarray | None:
        rows = self._dataset[start:stop]
        return rows if rows.any() or self._matches_sha256() else None

    def _matches_sha256(self) -> bool:
        if self._whole is None:
            try:
                self._whole = checksum(self._dataset) == self._dataset.attrs["sha256"]
            except (OSError, RuntimeError, KeyError):
                self._whole = False
        return self._whole


def spans_of(rows: np.ndarray) -> list[tuple[int, int]]:
    """Return ascending row numbers as (first, last) of runs without a gap."""
    runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1) if len(rows) else []
    return [(int(run[0]), int(run[-1])) for run in runs]


def _consecutive(numbers: np.ndarray) -> bool:
    return bool((np.diff(numbers) == 1).all())
