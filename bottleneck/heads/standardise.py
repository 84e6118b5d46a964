"""The standardisation of features, computed in one pass over the rows.

Shapes: n rows, D features, B rows of a block, K outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from bottleneck.heads.row_blocks import block_size, read_checked, sum_blocks
from bottleneck.samples import RowReader
from bottleneck.threads import WorkerPool


@dataclass(frozen=True)
class Standardisation:
    """mean, scale : (D,) float64; scale is 1 where a feature is constant. constant : (D,) bool."""

    mean: np.ndarray
    scale: np.ndarray
    constant: np.ndarray

    @classmethod
    def identity(cls, width: int) -> Standardisation:
        """Return the standardisation that leaves every feature unchanged."""
        return cls(np.zeros(width), np.ones(width), np.zeros(width, bool))

    def apply(self, block: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Return the standardised block (B, D) in its dtype, in `out` or in a new array."""
        out = np.subtract(block, self.mean.astype(block.dtype), out=out)
        out *= (1 / self.scale).astype(block.dtype)
        return out

    def fold(self, coef: np.ndarray, intercept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return coef (K, D) and intercept (K,) on raw features for those on standardised ones; float64."""
        raw = coef / self.scale
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
