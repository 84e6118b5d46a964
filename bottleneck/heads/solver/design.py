"""The standardised rows, held in memory in the Gram matrix's eigenbasis, or streamed in blocks.

Coefficients and gradients of the solver are always in the eigenbasis ("The coordinates" on the package's
page). Rows in memory are rotated into it once. Streamed rows are read as they are in every pass, and
coefficients and gradients are rotated instead.

Shapes: n rows, D features, Q coordinates (Q ≤ min(n, D)), B rows of a block, c columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import DTypeLike

from bottleneck.errors import FitError, counted
from bottleneck.heads.row_blocks import (
    Standardisation,
    block_size,
    blocks,
    read_blocks,
    read_checked,
    sum_blocks,
)
from bottleneck.heads.solver.arrays import Array, Place, cast, dtype_of, library, to_numpy
from bottleneck.samples import ArrayRows, RowReader
from bottleneck.threads import WorkerPool

BLOCK_ROWS = 2048  # such a block and the columns of a pass fit in a core's cache
MIN_ROWS_PER_PART = 1024  # on average; with smaller parts, more blocks cost more time than they save
MAX_DECOMPOSITION = 4096  # beyond it a decomposition costs more than it saves, and features stay unrotated
RESIDENT_FACTOR = 1.25  # memory that rows need, relative to their size
STREAM_BYTES = 4 << 20  # of a streamed block; a constant, so that sums do not depend on the memory allowed

Part = TypeVar("Part")


def eigenbasis(square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues (Q,), largest first, and eigenvectors (·, Q) of a Gram matrix.

    In float64, directions with an eigenvalue of 0 are left out. In float32 all are returned: an eigenvalue
    below 1e-4 of the largest is mostly rounding, but its direction may separate classes where C is large, and
    the vectors are orthonormal in any case.
    """
    values, vectors = np.linalg.eigh(square)
    values, vectors = values[::-1], vectors[:, ::-1]
    limits = np.finfo(square.dtype)
    nonzero = np.ones(len(values), bool)
    if square.dtype == np.float64:
        nonzero[1:] = values[1:] > max(values[0], 0) * len(values) * limits.eps
    floor = max(float(values[0]) * limits.eps, limits.tiny)
    return np.maximum(values[nonzero], floor), np.ascontiguousarray(vectors[:, nonzero])


class Design(ABC):
    """Rows that the solver multiplies; here in the eigenbasis, a stream overrides what differs.

    Attributes
    ----------
    n, width : numbers of rows and of coordinates, Q
    values : (Q,) float64, eigenvalues of the Gram matrix
    basis : (D, Q) array that turns coefficients in the eigenbasis into those of standardised features; None
        for the identity
    standard : Standardisation of the rows
    dtype, place : of the blocks
    """

    def __init__(
        self,
        n: int,
        values: np.ndarray,
        basis: np.ndarray | None,
        standard: Standardisation,
        *,
        dtype: DTypeLike,
        place: Place,
    ) -> None:
        self.n, self.width = n, len(values)
        self.values = place.array(values, np.float64)
        self.basis, self.standard, self.dtype, self.place = basis, standard, np.dtype(dtype), place

    @abstractmethod
    def blocks(self) -> Sequence[tuple[int, int]]:
        """Return the bounds (start, stop) of all blocks."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Array:
        """Return the rows start … stop−1: (B, Q) in memory, (B, D) standardised of a stream."""

    def each_block(self, pool: WorkerPool, work: Callable[[Array, int, int], Part]) -> Iterator[Part]:
        """Yield work(block, start, stop) of all blocks, in order."""
        return pool.run(work, ((self.read(*bounds), *bounds) for bounds in self.blocks()))

    def to_row_basis(self, coef: Array) -> Array:
        """Return the coefficients that multiply blocks for those in the eigenbasis (c, Q)."""
        return coef

    def to_eigenbasis(self, gradient: Array) -> Array:
        """Return gradients (c, Q) in the eigenbasis for those summed over blocks."""
        return gradient

    def leading(self, block: Array, r: int) -> Array:
        """Return the first r coordinates (B, r) of a block."""
        return block[:, :r]

    def on_features(self, coef: np.ndarray) -> np.ndarray:
        """Return float64 coefficients (c, D) of standardised features for those in the eigenbasis (c, Q)."""
        coef = coef.astype(np.float64)
        return coef if self.basis is None else coef @ self.basis.T

    def from_blocks(self, coef: np.ndarray) -> np.ndarray:
        """Return float64 coefficients (c, D) of standardised features for those that multiply blocks."""
        return self.on_features(coef)


class ResidentDesign(Design):
    """Rows x (n, Q) in memory, rotated.

    edges : row numbers that no block crosses, where that does not make too many blocks.
    """

    def __init__(
        self,
        x: np.ndarray,
        values: np.ndarray,
        basis: np.ndarray | None,
        standard: Standardisation,
        *,
        place: Place,
        edges: Sequence[int] = (),
    ) -> None:
        self.x = place.array(x)
        super().__init__(len(x), values, basis, standard, dtype=x.dtype, place=place)
        large = self.n >= MIN_ROWS_PER_PART * len(edges)
        self._edges = sorted({0, *(edges if large else ()), self.n})

    def blocks(self) -> Sequence[tuple[int, int]]:
        """Return the bounds of blocks: between two edges, an even number of blocks of about equal size."""
        if self.place.device != "cpu":
            return [(0, self.n)]
        cuts: set[int] = set()
        for first, last in pairwise(self._edges):
            count = 2 * -(-(last - first) // (2 * BLOCK_ROWS))
            cuts.update(np.linspace(first, last, count + 1).astype(int).tolist())
        return list(pairwise(sorted(cuts)))

    def read(self, start: int, stop: int) -> Array:
        return self.x[start:stop]


class StreamedDesign(Design):
    """Rows read in blocks in every pass; `basis` (D, Q) rotates coefficients and gradients."""

    basis: np.ndarray

    def __init__(
        self,
        rows: RowReader,
        values: np.ndarray,
        basis: np.ndarray,
        standard: Standardisation,
        *,
        place: Place,
    ) -> None:
        basis = np.ascontiguousarray(basis, np.float32)
        super().__init__(rows.shape[0], values, basis, standard, dtype=np.float32, place=place)
        self.rows = rows
        self._mean, self._inverse_scale = (
            place.array(part, np.float32) for part in (standard.mean, standard.multiplier)
        )
        self._vectors = place.array(basis)
        self._size = block_size(rows.shape[1], STREAM_BYTES)

    def blocks(self) -> Sequence[tuple[int, int]]:
        return list(blocks(self.rows, self._size))

    def read(self, start: int, stop: int) -> Array:
        return self._standardised(self.rows.read(start, stop), start)

    def each_block(self, pool: WorkerPool, work: Callable[[Array, int, int], Part]) -> Iterator[Part]:
        """Yield work(block, start, stop) of all blocks, in order; the calling thread only reads."""
        return pool.run(
            lambda raw, start, stop: work(self._standardised(raw, start), start, stop),
            ((self.rows.read(*bounds), *bounds) for bounds in self.blocks()),
        )

    def _standardised(self, raw: np.ndarray, start: int) -> Array:
        """Return rows (B, D) from `start` on, standardised; FitError as from `read_checked`."""
        if raw.dtype == np.float16:  # torch converts float16 faster than numpy
            x = cast(self.place.array(raw), np.float32)
        else:
            x = self.place.array(np.array(raw, np.float32))
        if not library(x).isfinite(x.sum()):
            read_checked(self.rows, start, start + len(raw))
        x -= self._mean
        x *= self._inverse_scale
        return x

    def to_row_basis(self, coef: Array) -> Array:
        return coef @ self._vectors.T

    def to_eigenbasis(self, gradient: Array) -> Array:
        return gradient @ cast(self._vectors, dtype_of(gradient))

    def leading(self, block: Array, r: int) -> Array:
        return block @ self._vectors[:, :r]

    def from_blocks(self, coef: np.ndarray) -> np.ndarray:
        return coef.astype(np.float64)


def build_design(
    rows: RowReader,
    standard: Standardisation,
    pool: WorkerPool,
    memory: int,
    *,
    parts: np.ndarray | None = None,
    dtype: DTypeLike = np.float32,
    components: int | None = None,
    columns: int = 0,
) -> tuple[Design, np.ndarray]:
    """Return the design of `rows` (n, D) that fits in `memory` bytes, and the order (n,) of its rows.

    parts : (n,) int. Rows in memory are sorted by it, and no block has rows of two parts unless parts are
        small. A stream keeps its order.
    components : the most leading coordinates of rows in memory, which then never are there whole; None keeps
        all.
    columns : multiplied by all rows in each pass, which decides between NumPy and torch (`Place.of`).

    Raises
    ------
    FitError
        The rows do not fit in memory and are too wide to be streamed.
    """
    n, D = rows.shape
    width = D if components is None or n <= D or D > MAX_DECOMPOSITION else min(components, D)
    needed = RESIDENT_FACTOR * n * width * np.dtype(dtype).itemsize
    place = Place.of(pool, n, D, columns, streamed=needed > memory)
    if needed <= memory:
        parts = np.zeros(n, np.int8) if parts is None else parts
        order = np.argsort(parts, kind="stable")
        edges = np.cumsum(np.unique(parts, return_counts=True)[1]).tolist()
        if width < D:
            values, vectors = _streamed_eigenbasis(rows, standard, pool)
            values, vectors = values[:width], np.ascontiguousarray(vectors[:, :width])
            x = _load(rows, standard, pool, order, dtype=dtype, vectors=vectors)
            return ResidentDesign(x, values, vectors, standard, place=place, edges=edges), order
        z = _load(rows, standard, pool, order, dtype=dtype)
        return _resident(z, standard, pool, place, edges), order
    if D > MAX_DECOMPOSITION:
        raise FitError(
            f"{counted(n, 'row')} of {counted(D, 'feature')} need "
            f"{RESIDENT_FACTOR * n * D * 4 / 2**20:.0f} MiB to be fitted, "
            f"of which {memory / 2**20:.0f} MiB are allowed, and are too wide to be streamed "
            f"(at most {MAX_DECOMPOSITION} features).",
            "Raise --memory, or use a node with fewer features (@avg in place of @flatten).",
        )
    values, vectors = _streamed_eigenbasis(rows, standard, pool)
    return StreamedDesign(rows, values, vectors, standard, place=place), np.arange(n)


def _streamed_eigenbasis(
    rows: RowReader, standard: Standardisation, pool: WorkerPool
) -> tuple[np.ndarray, np.ndarray]:
    """Return `eigenbasis` of the Gram matrix (D, D) of all rows, which are read in blocks."""

    def square(start: int, stop: int, block: np.ndarray) -> tuple[np.ndarray]:
        z = standard.apply(block)
        return (z.T @ z,)

    (gram,) = sum_blocks(pool, square, rows, block_size(rows.shape[1], STREAM_BYTES), dtype=np.float32)
    return eigenbasis(gram.astype(np.float32))


def streamed_like(design: Design, rows: RowReader) -> StreamedDesign:
    """Return other rows (m, D) in the coordinates of `design`, for predictions."""
    basis = np.eye(design.width) if design.basis is None else design.basis
    values = to_numpy(design.values)
    return StreamedDesign(rows, values, basis, design.standard, place=design.place)


def _load(
    rows: RowReader,
    standard: Standardisation,
    pool: WorkerPool,
    order: np.ndarray,
    *,
    dtype: DTypeLike,
    vectors: np.ndarray | None = None,
) -> np.ndarray:
    """Return all rows (n, D), standardised; row i of the result is row order[i] of `rows`.

    vectors : (D, Q) by which they are multiplied, if any
    """
    z = np.empty(rows.shape if vectors is None else (rows.shape[0], vectors.shape[1]), dtype)
    index = np.empty(len(order), np.int64)
    index[order] = np.arange(len(order))

    def fill(start: int, stop: int, block: np.ndarray) -> None:
        block = standard.apply(block)
        z[index[start:stop]] = block if vectors is None else block @ vectors

    for _ in pool.run(fill, read_blocks(rows, BLOCK_ROWS, dtype)):
        pass
    return z


def _resident(
    z: np.ndarray, standard: Standardisation, pool: WorkerPool, place: Place, edges: Sequence[int]
) -> ResidentDesign:
    """Return standardised rows z (n, D) in their eigenbasis; z is overwritten.

    With n < D the rows and all gradients lie in a space of at most n dimensions, and the problem is solved
    there: with ZZᵀ = U Λ Uᵀ the rows are U √Λ, and Zᵀ U / √Λ turns coefficients back.
    """
    n, D = z.shape
    if min(n, D) > MAX_DECOMPOSITION:
        values = np.einsum("ij,ij->j", z, z, dtype=np.float64)
        return ResidentDesign(z, values, None, standard, place=place, edges=edges)
    if n < D:
        wide = z.astype(np.float64)
        values, vectors = eigenbasis(wide @ wide.T)
        root = np.sqrt(values)
        basis = wide.T @ (vectors / root)
        x = (vectors * root).astype(z.dtype)
        return ResidentDesign(x, values, basis, standard, place=place, edges=edges)
    bounds = list(blocks(ArrayRows(z), BLOCK_ROWS))
    squares = pool.run(lambda start, stop: z[start:stop].T @ z[start:stop], bounds)
    gram = reduce(np.add, (part.astype(np.float64) for part in squares))
    values, vectors = eigenbasis(gram.astype(z.dtype))
    width = len(values)

    def rotate(start: int, stop: int) -> None:
        z[start:stop, :width] = z[start:stop] @ vectors

    for _ in pool.run(rotate, bounds):
        pass
    return ResidentDesign(z[:, :width], values, vectors, standard, place=place, edges=edges)
