"""Rows of features from wherever they lie: numpy arrays, torch tensors, open caches.

A row reader has `shape` (n, …, D), `dtype` and `read(start, stop) -> ndarray`; everything in `heads` that may
be larger than memory asks for nothing else.

Shapes: n rows, D features, V views, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from bottleneck.errors import FitError

BLOCK_BYTES = 8 << 20


class RowReader(Protocol):
    """Rows that are read in blocks."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, start: int, stop: int) -> np.ndarray: ...


class ArrayRows:
    """An array (n, D) as a row reader."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start … stop−1, without a copy."""
        return self.array[start:stop]


class ViewRows:
    """Views (n, V, D) of another reader as n·V rows; row i·V + v is view v of sample i."""

    def __init__(self, rows: RowReader) -> None:
        n, self.views, width = rows.shape
        self.rows, self.shape, self.dtype = rows, (n * self.views, width), rows.dtype

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start … stop−1."""
        first = start // self.views
        block = self.rows.read(first, -(-stop // self.views)).reshape(-1, self.shape[1])
        return block[start - first * self.views : stop - first * self.views]


def is_reader(X: Any) -> bool:
    """True for an object with the row-reader protocol that is not an array."""
    return hasattr(X, "read") and hasattr(X, "shape")


def as_rows(X: Any) -> RowReader:
    """A reader of (n, D) rows for an array, a tensor, or a reader of rows or of views (n, V, D)."""
    if is_reader(X):
        return ViewRows(X) if len(X.shape) == 3 else X
    return ArrayRows(np.asarray(without_torch(X)))


def without_torch(X: Any) -> Any:
    """A tensor as an array; anything else as it is."""
    return X.detach().cpu().numpy() if hasattr(X, "detach") else X


def is_double(rows: RowReader) -> bool:
    """True where the rows need float64; float16, float32 and integers of a pixel are solved in float32."""
    return rows.dtype == np.float64


def blocks(rows: RowReader, size: int) -> Iterator[tuple[int, int]]:
    """Bounds (start, stop) of blocks of up to `size` rows."""
    return ((start, min(start + size, rows.shape[0])) for start in range(0, rows.shape[0], size))


def block_size(width: int, block_bytes: int = BLOCK_BYTES) -> int:
    """Rows of `width` float32 numbers in about `block_bytes`."""
    return max(1, block_bytes // (4 * max(1, width)))


def read_checked(rows: RowReader, start: int, stop: int, dtype: np.dtype | type = np.float32) -> np.ndarray:
    """Rows start … stop−1 as `dtype` (B, D), all finite.

    Raises
    ------
    FitError
        Naming the first row and feature that is NaN or infinite.
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


def linear_outputs(rows: RowReader, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
    """rows · coefᵀ + intercept (n, C) block by block, in float64 for float64 rows. coef : (C, D)."""
    dtype = np.float64 if is_double(rows) else np.float32
    coef, intercept = coef.T.astype(dtype), intercept.astype(dtype)
    size = block_size(rows.shape[1])
    parts = [read_checked(rows, *bounds, dtype) @ coef + intercept for bounds in blocks(rows, size)]
    return np.concatenate([np.empty((0, coef.shape[1]), dtype), *parts])
