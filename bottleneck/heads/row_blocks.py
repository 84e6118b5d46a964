"""Rows of features read in blocks, so that a head is fitted on more rows than fit in memory; standardisation.

A head takes an array, a torch tensor, or any object with `shape` (n, D), `dtype` and `read(start, stop)`
(`bottleneck.samples.RowReader`), for example the rows of an open cache.

Shapes: n rows, D features, V views, B rows of a block, K classes or outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from bottleneck.errors import FitError
from bottleneck.samples import ArrayRows, RowReader
from bottleneck.threads import WorkerPool

BLOCK_BYTES = 8 << 20


class SelectedRows(RowReader):
    """The rows `indices` (m,) of another reader, in that order."""

    def __init__(self, rows: RowReader, indices: np.ndarray) -> None:
        self.rows, self.indices = rows, indices
        self.shape, self.dtype = (len(indices), *rows.shape[1:]), rows.dtype

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Return the rows `indices` of this selection."""
        return self.rows.take(self.indices[indices])


class ViewRows(RowReader):
    """Views (n, V, D) of another reader as n·V rows; row i·V + v is view v of sample i."""

    def __init__(self, rows: RowReader) -> None:
        n, self.views, width = rows.shape
        self.rows, self.shape, self.dtype = rows, (n * self.views, width), rows.dtype

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Return the rows `indices`."""
        return self.rows.take(indices // self.views)[np.arange(len(indices)), indices % self.views]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the rows start … stop−1; each sample's views are read once."""
        first = start // self.views
        block = self.rows.read(first, -(-stop // self.views)).reshape(-1, self.shape[1])
        return block[start - first * self.views : stop - first * self.views]


def is_reader(X: Any) -> bool:
    """Return True for an object that is read in blocks, False for arrays and tensors."""
    return hasattr(X, "read") and hasattr(X, "shape")


def as_rows(X: Any) -> RowReader:
    """Return a reader of rows (n, D) for an array, a tensor, or a reader of rows or of views (n, V, D)."""
    if not is_reader(X):
        return ArrayRows(np.asarray(without_torch(X)))
    rows: RowReader = ViewRows(X) if len(X.shape) == 3 else X
    return rows


def without_torch(X: Any) -> Any:
    """Return a tensor as an array, anything else unchanged."""
    return X.detach().cpu().numpy() if hasattr(X, "detach") else X


def is_double(rows: RowReader) -> bool:
    """Return True where the rows are solved in float64; float16, float32 and integers are in float32."""
    return rows.dtype == np.float64


def blocks(rows: RowReader, size: int) -> Iterator[tuple[int, int]]:
    """Yield the bounds (start, stop) of blocks of up to `size` rows."""
    return ((start, min(start + size, rows.shape[0])) for start in range(0, rows.shape[0], size))


def block_size(width: int, block_bytes: int = BLOCK_BYTES) -> int:
    """Return how many rows of `width` float32 numbers take about `block_bytes`; 1 or more."""
    return max(1, block_bytes // (4 * max(1, width)))


def read_checked(rows: RowReader, start: int, stop: int, dtype: DTypeLike = np.float32) -> np.ndarray:
    """Return the rows start … stop−1 as `dtype` (B, D), all finite.

    Raises
    ------
    FitError
        A number is NaN or infinite; the message names the first such row and feature.
    """
    block = np.asarray(rows.read(start, stop), dtype)
    if not np.isfinite(block.sum(dtype=np.float64)) and not np.isfinite(block).all():
        row, column = np.argwhere(~np.isfinite(block))[0]
        value = "NaN" if np.isnan(block[row, column]) else "infinity"
        raise FitError(
            f"Feature {column} of row {start + row} is {value}; expected finite numbers.",
            "Look at that image, or extract again with --dtype float32 where float16 overflowed.",
        )
    return block


def read_blocks(rows: RowReader, size: int, dtype: DTypeLike) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (start, stop, rows (B, D) as `dtype`, all finite) of all blocks of `size` rows."""
    for start, stop in blocks(rows, size):
        yield start, stop, read_checked(rows, start, stop, dtype)


def sum_blocks(
    pool: WorkerPool, work: Callable[..., tuple[Any, ...]], rows: RowReader, size: int, *, dtype: DTypeLike
) -> list[np.ndarray]:
    """Sum each part of work(start, stop, block) over all blocks, in float64."""
    totals: list[np.ndarray] = []
    for parts in pool.run(work, read_blocks(rows, size, dtype)):
        if not totals:
            totals = [np.asarray(part, np.float64) for part in parts]
            continue
        for total, part in zip(totals, parts, strict=True):
            total += part
    return totals


def linear_outputs(rows: RowReader, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
    """Return rows · coefᵀ + intercept (n, K) for coef (K, D); in float64 for float64 rows."""
    dtype = np.float64 if is_double(rows) else np.float32
    coef, intercept = coef.T.astype(dtype), intercept.astype(dtype)
    size = block_size(rows.shape[1])
    parts = [read_checked(rows, *bounds, dtype) @ coef + intercept for bounds in blocks(rows, size)]
    return np.concatenate([np.empty((0, coef.shape[1]), dtype), *parts])


@dataclass(frozen=True)
class Standardisation:
    """Features are standardised, and multiplied by `weight`.

    mean, scale : (D,) float64; scale is 1 where a feature is constant. constant : (D,) bool.
    weight : (D,), 0 leaves a feature out; None is 1.
    """

    mean: np.ndarray
    scale: np.ndarray
    constant: np.ndarray
    weight: np.ndarray | None = None

    @property
    def multiplier(self) -> np.ndarray:
        """(D,) that centred features are multiplied by."""
        inverse: np.ndarray = 1 / self.scale if self.weight is None else self.weight / self.scale
        return inverse

    @property
    def divisor(self) -> np.ndarray:
        """(D,) that centred features are divided by; the scale alone where the weight is 0."""
        if self.weight is None:
            return self.scale
        return self.scale / np.where(self.weight > 0, self.weight, 1.0)

    @classmethod
    def identity(cls, width: int) -> Standardisation:
        """Return the standardisation that leaves every feature unchanged."""
        return cls(np.zeros(width), np.ones(width), np.zeros(width, bool))

    def apply(self, block: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Return the standardised block (B, D) in its dtype, in `out` or in a new array."""
        out = np.subtract(block, self.mean.astype(block.dtype), out=out)
        out *= self.multiplier.astype(block.dtype)
        return out

    def fold(self, coef: np.ndarray, intercept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return coef (K, D) and intercept (K,) on raw features for those on standardised ones; float64."""
        raw = coef * self.multiplier
        return raw, intercept - raw @ self.mean


def standardisation(
    rows: RowReader, pool: WorkerPool, weights: np.ndarray | None = None, dtype: DTypeLike = np.float32
) -> Standardisation:
    """Return the mean and standard deviation of every feature, weighted by `weights` (n,) where given.

    One pass with float64 sums. The first row is subtracted before squaring, so that a large mean costs no
    digits.

    Raises
    ------
    FitError
        A feature is NaN or infinite.
    """
    n, D = rows.shape
    shift = np.zeros(D) if n == 0 else read_checked(rows, 0, 1, dtype)[0].astype(np.float64)

    def moments(start: int, stop: int, block: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        shifted = block - shift
        w = np.ones(stop - start) if weights is None else weights[start:stop]
        first = w @ shifted
        return w.sum(), first, w @ np.square(shifted, out=shifted)

    total, first, second = sum_blocks(pool, moments, rows, block_size(D), dtype=dtype)
    first = first / total
    variance = np.maximum(second / total - first**2, 0)
    mean = first + shift
    # The variance that rounding gives a constant feature, with the limit of scikit-learn's StandardScaler.
    eps = np.finfo(np.float64).eps
    constant = variance <= n * eps * variance + (n * eps * mean) ** 2
    return Standardisation(mean, np.where(constant, 1.0, np.sqrt(variance)), constant)
