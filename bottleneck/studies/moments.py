"""What the scores need of labelled rows: counts, sums, scatter and principal axes, in two streaming passes.

Shapes: N rows, D features, K classes that occur, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import linalg, sparse

from bottleneck.errors import FitError
from bottleneck.heads.rows import RowReader, as_rows, block_size, blocks, read_checked

CHUNK_BYTES = 64 << 20  # of float64 rows read at a time
WIDEST = 8192  # features, where rows are more: the scatter then takes 0.5 GiB
MOST_HELD = 1 << 27  # N · D where features are more than rows: 1 GiB


@dataclass(frozen=True)
class Moments:
    """Labelled rows, summed up.

    Parameters
    ----------
    counts : (K,) int
    sums : (K, D) float64, of the rows of each class.
    fourth : float
        Σ |x − mean|⁴ over rows.
    scatter : (D, D) float64 or None
        Σ (x − mean)(x − mean)' where rows are more than features.
    held : (N, D) float64 or None
        The rows themselves where they are not.
    """

    counts: np.ndarray
    sums: np.ndarray
    fourth: float
    scatter: np.ndarray | None
    held: np.ndarray | None

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
        """Squared singular values (R,), descending, and right singular vectors (D, R) of the rows.

        centred : of the rows less their mean. Directions that rounding cannot tell from empty are left out.
        """
        if self.held is not None:
            rows = self.held - self.mean if centred else self.held
            _, singular, axes = linalg.svd(rows, full_matrices=False, check_finite=False)
            kept = singular > singular[0] * max(rows.shape) * np.finfo(float).eps
            return singular[kept] ** 2, axes[kept].T
        gram = self.scatter if centred else self.scatter + self.N * np.outer(self.mean, self.mean)
        squares, axes = linalg.eigh(gram, check_finite=False, driver="evd")
        squares, axes = squares[::-1], axes[:, ::-1]
        kept = squares > squares[0] * self.D * np.finfo(float).eps
        return squares[kept], axes[:, kept]


def moments(rows: np.ndarray | RowReader, labels: np.ndarray) -> Moments:
    """Sum up `rows` (N, D) by class codes `labels` (N,).

    Raises
    ------
    FitError
        Fewer than two classes, rows and labels of different number, features that are constant or not finite,
        or so many that their scatter does not fit into memory.
    """
    classes, codes = np.unique(np.asarray(labels), return_inverse=True)
    N, D = check(rows, codes)
    if len(classes) < 2:
        raise FitError(f"Scores compare classes, and the rows have {len(classes)}; expected 2 or more.")
    if N > D > WIDEST or (N <= D and N * D > MOST_HELD):
        raise FitError(
            f"Rows of {D:,} features are too wide to be scored; expected up to {WIDEST:,}.",
            "Extract the node with a smaller pool, such as NODE@avg.",
        )
    sums = class_sums(rows, codes, len(classes))
    mean = sums.sum(axis=0) / N
    held = np.empty((N, D)) if N <= D else None
    scatter = None if N <= D else np.zeros((D, D))
    fourth = 0.0
    for start, block in chunks(rows):
        if held is not None:
            held[start : start + len(block)] = block
        block -= mean
        fourth += float((np.einsum("nd,nd->n", block, block) ** 2).sum())
        if scatter is not None:
            scatter += block.T @ block
    if fourth == 0.0:
        raise FitError("All rows of features are equal, so they tell nothing of the classes.")
    return Moments(np.bincount(codes), sums, fourth, scatter, held)


def class_sums(rows: np.ndarray | RowReader, codes: np.ndarray, K: int) -> np.ndarray:
    """(K, D) float64: the sum of the rows of each class."""
    sums = np.zeros((K, rows.shape[1]))
    for start, block in chunks(rows):
        B = len(block)
        sums += sparse.csr_array((np.ones(B), (codes[start : start + B], np.arange(B))), shape=(K, B)) @ block
    return sums


def check(rows: np.ndarray | RowReader, codes: np.ndarray) -> tuple[int, int]:
    """(N, D) of rows that go with `codes`, or FitError."""
    if len(rows.shape) != 2:
        raise FitError(
            f"Rows of features have shape {tuple(rows.shape[1:])}; scores take vectors.",
            "Name a pooled node, such as NODE@avg.",
        )
    if rows.shape[0] != len(codes):
        raise FitError(f"There are {rows.shape[0]:,} rows of features but {len(codes):,} labels.")
    return rows.shape[0], rows.shape[1]


def chunks(rows: np.ndarray | RowReader, dtype: type = np.float64) -> Iterator[tuple[int, np.ndarray]]:
    """(start, rows from there) of bounded size, as fresh arrays of `dtype`."""
    reader = as_rows(rows)
    for start, stop in blocks(reader, block_size(2 * reader.shape[1], CHUNK_BYTES)):
        yield start, np.array(read_checked(reader, start, stop, dtype))
