"""Standardisation, and the eigenbasis of the standardised Gram matrix.

Shapes: n rows, D features, B rows of a block, r coordinates (r ≤ min(n, D)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from bottleneck.heads.crew import Crew
from bottleneck.heads.rows import RowReader, blocks, read_checked


@dataclass(frozen=True)
class Standardisation:
    """mean, scale : (D,) float64; scale is 1 where a feature is constant. constant : (D,) bool."""

    mean: np.ndarray
    scale: np.ndarray
    constant: np.ndarray

    def apply(self, block: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """(B, D) in the block's dtype, into `out` or a new array."""
        out = np.subtract(block, self.mean.astype(block.dtype), out=out)
        out *= (1 / self.scale).astype(block.dtype)
        return out

    def fold(self, coef: np.ndarray, intercept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """coef (C, D) and intercept (C,) on raw features, of those on standardised ones; float64."""
        raw = coef / self.scale
        return raw, intercept - raw @ self.mean


def unchanged(width: int) -> Standardisation:
    """The standardisation that leaves every feature as it is."""
    return Standardisation(np.zeros(width), np.ones(width), np.zeros(width, bool))


def read_blocks(rows: RowReader, size: int, dtype: np.dtype | type) -> Iterator[tuple[int, int, np.ndarray]]:
    """(start, stop, rows (B, D) as `dtype`, all finite) of all blocks of `size` rows."""
    for start, stop in blocks(rows, size):
        yield start, stop, read_checked(rows, start, stop, dtype)


def standardisation(
    rows: RowReader,
    crew: Crew,
    size: int,
    weights: np.ndarray | None = None,
    dtype: np.dtype | type = np.float32,
) -> Standardisation:
    """Weighted mean and standard deviation of every feature, in one pass with float64 sums.

    Rows are shifted by one of their own before squaring, so that a large mean costs no digits.
    weights : (n,) float; rows count alike where it is left out.

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

    total, first, second = _summed(crew, moments, rows, size, dtype)
    first = first / total
    variance = np.maximum(second / total - first**2, 0)
    mean = first + shift
    # What rounding alone would make of a constant (as scikit-learn's StandardScaler draws the line).
    eps = np.finfo(np.float64).eps
    constant = variance <= n * eps * variance + (n * eps * mean) ** 2
    return Standardisation(mean, np.where(constant, 1.0, np.sqrt(variance)), constant)


def gram(rows: RowReader, standard: Standardisation, crew: Crew, size: int) -> np.ndarray:
    """ZᵀZ (D, D) float64 of the standardised rows Z, block by block; products in float32."""

    def square(start: int, stop: int, block: np.ndarray) -> tuple[np.ndarray]:
        z = standard.apply(block)
        return (z.T @ z,)

    return _summed(crew, square, rows, size, np.float32)[0]


def eigenbasis(square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (r,), largest first, and eigenvectors (D, r) of a Gram matrix, without zeros in float64.

    In float32 an eigenvalue below 1e-4 of the largest drowns in rounding, but its direction may separate
    classes where C is large: all are kept, for the vectors are orthonormal whatever their values.
    """
    values, vectors = eigh(square, driver="evd", check_finite=False)
    values, vectors = values[::-1], vectors[:, ::-1]
    limits = np.finfo(square.dtype)
    kept = np.ones(len(values), bool)
    if square.dtype == np.float64:
        kept[1:] = values[1:] > max(values[0], 0) * len(values) * limits.eps
    floor = max(float(values[0]) * limits.eps, limits.tiny)
    return np.maximum(values[kept], floor), np.ascontiguousarray(vectors[:, kept])


def _summed(crew: Crew, work: Callable, rows: RowReader, size: int, dtype: np.dtype | type) -> list:
    """The parts that `work` gives of each block, summed over the blocks in float64."""
    totals: list = []
    for parts in crew.run(work, read_blocks(rows, size, dtype)):
        if not totals:
            totals = [np.asarray(part, np.float64) for part in parts]
            continue
        for total, part in zip(totals, parts, strict=True):
            total += part
    return totals
