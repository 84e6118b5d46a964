"""What the scores need of labelled rows: counts, sums, scatter and principal axes, in two streaming passes.

Features are arrays or row readers (`shape`, `read(start, stop)`).

Shapes: N rows, D features, K classes that occur, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import linalg, sparse

from bottleneck.errors import FitError
from bottleneck.heads.row_blocks import as_rows, block_size, blocks, read_checked
from bottleneck.samples import RowReader

CHUNK_BYTES = 64 << 20  # of float64 rows read at a time
WIDEST = 8192  # features, where rows are more: the scatter then takes 0.5 GiB
MOST_HELD = 1 << 27  # N · D where features are more than rows: 1 GiB


@dataclass(frozen=True)
class Moments:
    """Statistics of labelled rows.

    Parameters
    ----------
    counts : (K,) int
    sums : (K, D) float64, of the rows of each class.
    fourth : float
        Σ |x − mean|⁴ over rows.
    scatter : (D, D) float64 or None
        Σ (x − mean)(x − mean)' if N > D.
    rows : (N, D) float64 or None
        The rows themselves if N ≤ D.
    """

    counts: np.ndarray
    sums: np.ndarray
    fourth: float
    scatter: np.ndarray | None
    rows: np.ndarray | None

    @property
    def N(self) -> int:
        return int(self.counts.sum())

    @property
    def D(self) -> int:
        return self.sums.shape[1]

    @property
    def mean(self) -> np.ndarray:
        """(D,) mean of all rows."""
        return self.sums.sum(axis=0) / self.N

    def principal_axes(self, *, centred: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return squared singular values (R,), descending, and right singular vectors (D, R) of the rows.

        centred : subtract the mean first. Directions that are empty up to rounding are left out.
        """
        if self.rows is not None:
            rows = self.rows - self.mean if centred else self.rows
            _, singular, axes = linalg.svd(rows, full_matrices=False, check_finite=False)
            occupied = singular > singular[0] * max(rows.shape) * np.finfo(float).eps
            return singular[occupied] ** 2, axes[occupied].T
        assert self.scatter is not None
        gram = self.scatter if centred else self.scatter + self.N * np.outer(self.mean, self.mean)
        squares, axes = linalg.eigh(gram, check_finite=False, driver="evd")
        squares, axes = squares[::-1], axes[:, ::-1]
        occupied = squares > squares[0] * self.D * np.finfo(float).eps
        return squares[occupied], axes[:, occupied]


def moments(rows: np.ndarray | RowReader, labels: np.ndarray) -> Moments:
    """Compute the moments of `rows` (N, D) with class codes `labels` (N,) in two passes.

    Raises
    ------
    FitError
        Fewer than two classes, rows and labels of different number, features that are constant or not finite,
        or so many that their scatter does not fit into memory.
    """
    classes, codes = np.unique(np.asarray(labels), return_inverse=True)
    N, D = check_rows(rows, codes)
    if len(classes) < 2:
        raise FitError(f"Scores compare classes, and the rows have {len(classes)}; expected 2 or more.")
    if N > D > WIDEST or (N <= D and N * D > MOST_HELD):
        raise FitError(
            f"Rows of {D:,} features are too wide to be scored; expected up to {WIDEST:,}.",
            "Extract the node with a smaller pool, such as NODE@avg.",
        )
    sums = class_sums(rows, codes, len(classes))
    mean = sums.sum(axis=0) / N
    stored = np.empty((N, D)) if N <= D else None
    scatter = None if N <= D else np.zeros((D, D))
    fourth = 0.0
    for start, block in chunks(rows):
        if stored is not None:
            stored[start : start + len(block)] = block
        block -= mean
        fourth += float((np.einsum("nd,nd->n", block, block) ** 2).sum())
        if scatter is not None:
            scatter += block.T @ block
    if fourth == 0.0:
        raise FitError("All rows of features are equal, so they tell nothing of the classes.")
    return Moments(np.bincount(codes), sums, fourth, scatter, stored)


def class_sums(rows: np.ndarray | RowReader, codes: np.ndarray, K: int) -> np.ndarray:
    """Return (K, D) float64, the sum of the rows of each class."""
    sums = np.zeros((K, rows.shape[1]))
    for start, block in chunks(rows):
        B = len(block)
        sums += sparse.csr_array((np.ones(B), (codes[start : start + B], np.arange(B))), shape=(K, B)) @ block
    return sums


def check_rows(rows: np.ndarray | RowReader, codes: np.ndarray) -> tuple[int, int]:
    """Return N and D. Raises FitError where rows are no vectors, or not as many as `codes`."""
    if len(rows.shape) != 2:
        raise FitError(
            f"Rows of features have shape {tuple(rows.shape[1:])}; scores take vectors.",
            "Name a pooled node, such as NODE@avg.",
        )
    if rows.shape[0] != len(codes):
        raise FitError(f"There are {rows.shape[0]:,} rows of features but {len(codes):,} labels.")
    return rows.shape[0], rows.shape[1]


def chunks(rows: np.ndarray | RowReader, dtype: type = np.float64) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (start, rows from `start` on) in new arrays of `dtype` and bounded size."""
    reader = as_rows(rows)
    for start, stop in blocks(reader, block_size(2 * reader.shape[1], CHUNK_BYTES)):
        yield start, np.array(read_checked(reader, start, stop, dtype))
