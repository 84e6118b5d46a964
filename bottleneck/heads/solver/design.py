"""The rows of a problem as the solver multiplies them: in memory in the eigenbasis, or streamed in blocks.

Both speak of coefficients in the eigenbasis of the Gram matrix, whose r coordinates carry the eigenvalues
`values`. In memory the rows are rotated into it once (exactly r = rank ≤ n coordinates where n < D); a stream
is read as it is, and coefficients and gradients are rotated instead.

Shapes: n rows, D features, r coordinates, B rows of a block, c columns.

Standardisation, and the eigenbasis of the standardised Gram matrix.

Shapes: n rows, D features, B rows of a block, r coordinates (r ≤ min(n, D)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor

from bottleneck.errors import FitError
from bottleneck.heads.row_blocks import block_size, blocks, read_checked
from bottleneck.samples import ArrayRows, RowReader
from bottleneck.threads import WorkerPool


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
    crew: WorkerPool,
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


def gram(rows: RowReader, standard: Standardisation, crew: WorkerPool, size: int) -> np.ndarray:
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


def _summed(crew: WorkerPool, work: Callable, rows: RowReader, size: int, dtype: np.dtype | type) -> list:
    """The parts that `work` gives of each block, summed over the blocks in float64."""
    totals: list = []
    for parts in crew.run(work, read_blocks(rows, size, dtype)):
        if not totals:
            totals = [np.asarray(part, np.float64) for part in parts]
            continue
        for total, part in zip(totals, parts, strict=True):
            total += part
    return totals


BLOCK_ROWS = 2048  # times the columns of a pass stay in a core's cache
LEAST_PART = 1024  # rows between two edges, on average; with fewer, more blocks cost more than they save
# Beyond this the cubic cost of a decomposition exceeds what it saves; features then stay as they are.
LARGEST_DECOMPOSITION = 4096
RESIDENT_SHARE = 1.25  # of the rows' own size is needed to hold them
STREAM_BYTES = 4 << 20  # of a block on its way; never by the memory allowed, so that sums do not depend on it


Part = TypeVar("Part")


class ResidentDesign:
    """Rows in memory, rotated.

    Attributes
    ----------
    n, width : rows, and r
    values : (r,) float64 eigenvalues of the Gram matrix
    dtype, device : of the blocks

    `edges` are numbers of rows that no block crosses, where that does not make too many of them.
    """

    def __init__(
        self,
        x: np.ndarray,
        values: np.ndarray,
        back: np.ndarray | None,
        standard: Standardisation,
        device: torch.device,
        edges: Sequence[int] = (),
    ) -> None:
        self.x = torch.from_numpy(x).to(device)
        self.n, self.width = x.shape
        self.values = torch.from_numpy(np.asarray(values, np.float64)).to(device)
        self.standard, self._back = standard, back
        self.dtype, self.device = self.x.dtype, device
        worth = self.n >= LEAST_PART * len(edges)
        self._edges = sorted({0, *(edges if worth else ()), self.n})

    def blocks(self) -> Sequence[tuple[int, int]]:
        """Bounds of blocks: between two edges an even number of about equal ones."""
        if self.device.type != "cpu":
            return [(0, self.n)]
        cuts: set[int] = set()
        for first, last in pairwise(self._edges):
            count = 2 * -(-(last - first) // (2 * BLOCK_ROWS))
            cuts.update(np.linspace(first, last, count + 1).astype(int).tolist())
        return list(pairwise(sorted(cuts)))

    def read(self, start: int, stop: int) -> Tensor:
        """(B, r) of rows in their present order."""
        return self.x[start:stop]

    def each_block(self, crew: WorkerPool, work: Callable[[Tensor, int, int], Part]) -> Iterator[Part]:
        """work(block, start, stop) of all blocks, in order."""
        return crew.run(work, ((self.read(*bounds), *bounds) for bounds in self.blocks()))

    def lift(self, coef: Tensor) -> Tensor:
        """(c, r) coefficients in the eigenbasis → those that multiply blocks."""
        return coef

    def lower(self, gradient: Tensor) -> Tensor:
        """The reverse, of gradients."""
        return gradient

    def leading(self, block: Tensor, r: int) -> Tensor:
        """(B, r) first coordinates of a block."""
        return block[:, :r]

    def on_features(self, coef: np.ndarray) -> np.ndarray:
        """(c, D) coefficients of standardised features, of (c, r) in the eigenbasis; float64."""
        return coef.astype(np.float64) if self._back is None else coef.astype(np.float64) @ self._back.T

    def from_blocks(self, coef: np.ndarray) -> np.ndarray:
        """(c, D) coefficients of standardised features, of those (c, r) that multiply blocks; float64."""
        return self.on_features(coef)

    def vectors_back(self) -> np.ndarray:
        """(D, r), what turns coefficients in the eigenbasis into those of standardised features."""
        return np.eye(self.width) if self._back is None else self._back


class StreamedDesign:
    """Rows read in blocks; vectors (D, r) float32 rotate coefficients. See `ResidentDesign`."""

    def __init__(
        self,
        rows: RowReader,
        values: np.ndarray,
        vectors: np.ndarray,
        standard: Standardisation,
        device: torch.device,
    ) -> None:
        self.rows, self.standard = rows, standard
        self._mean, self._inverse = (
            torch.from_numpy(values.astype(np.float32)).to(device)
            for values in (standard.mean, 1 / standard.scale)
        )
        self.n, self.width = rows.shape[0], vectors.shape[1]
        self.values = torch.from_numpy(np.asarray(values, np.float64)).to(device)
        self.vectors = torch.from_numpy(np.ascontiguousarray(vectors, np.float32)).to(device)
        self.dtype, self.device = torch.float32, device
        self._size = block_size(rows.shape[1], STREAM_BYTES)

    def blocks(self) -> Sequence[tuple[int, int]]:
        """Bounds of blocks."""
        return list(blocks(self.rows, self._size))

    def read(self, start: int, stop: int) -> Tensor:
        """(B, D) standardised."""
        return self._standardised(self.rows.read(start, stop), start)

    def each_block(self, crew: WorkerPool, work: Callable[[Tensor, int, int], Part]) -> Iterator[Part]:
        """work(block, start, stop) of all blocks, in order; the caller's thread does nothing but read."""
        return crew.run(
            lambda raw, start, stop: work(self._standardised(raw, start), start, stop),
            ((self.rows.read(*bounds), *bounds) for bounds in self.blocks()),
        )

    def _standardised(self, raw: np.ndarray, start: int) -> Tensor:
        """(B, D) of the rows from `start` on as they were read. Errors as of `read_checked`."""
        if raw.dtype == np.float16:  # numpy takes 8 times as long to widen it
            x = torch.from_numpy(np.require(raw, requirements="W")).to(self.device).float()
        else:
            x = torch.from_numpy(np.array(raw, np.float32)).to(self.device)
        if not x.sum().isfinite():
            read_checked(self.rows, start, start + len(raw))
        return x.sub_(self._mean).mul_(self._inverse)

    def lift(self, coef: Tensor) -> Tensor:
        """(c, r) → (c, D)."""
        return coef @ self.vectors.T

    def lower(self, gradient: Tensor) -> Tensor:
        """(c, D) → (c, r)."""
        return gradient @ self.vectors.to(gradient.dtype)

    def leading(self, block: Tensor, r: int) -> Tensor:
        """(B, r) first coordinates of a block."""
        return block @ self.vectors[:, :r]

    def on_features(self, coef: np.ndarray) -> np.ndarray:
        """(c, D) coefficients of standardised features, of (c, r) in the eigenbasis; float64."""
        return coef.astype(np.float64) @ self.vectors_back().T.astype(np.float64)

    def from_blocks(self, coef: np.ndarray) -> np.ndarray:
        """(c, D) coefficients of standardised features, of those that multiply blocks: the same."""
        return coef.astype(np.float64)

    def vectors_back(self) -> np.ndarray:
        """(D, r), what turns coefficients in the eigenbasis into those of standardised features."""
        return self.vectors.cpu().numpy()


Design = ResidentDesign | StreamedDesign


def build_design(
    rows: RowReader,
    standard: Standardisation,
    crew: WorkerPool,
    memory: int,
    parts: np.ndarray | None = None,
    dtype: np.dtype | type = np.float32,
) -> tuple[Design, np.ndarray]:
    """The design of `rows` (n, D) that fits into `memory` bytes, and the order of its rows.

    parts : (n,) int, rows in memory are arranged by it, and no block crosses from one part to the next unless
        parts are small; a stream keeps its order.
    """
    n, D = rows.shape
    if RESIDENT_SHARE * n * D * np.dtype(dtype).itemsize <= memory:
        parts = np.zeros(n, np.int8) if parts is None else parts
        order = np.argsort(parts, kind="stable")
        edges = np.cumsum(np.unique(parts, return_counts=True)[1])
        return _resident(_arranged(rows, standard, crew, dtype, order), standard, crew, edges.tolist()), order
    if D > LARGEST_DECOMPOSITION:
        raise FitError(
            f"{n} rows of {D} features need {RESIDENT_SHARE * n * D * 4 / 2**20:.0f} MiB to be fitted, "
            f"of which {memory / 2**20:.0f} MiB are allowed, and are too wide to be streamed "
            f"(at most {LARGEST_DECOMPOSITION} features).",
            "Raise --memory, or use a node with fewer features (@avg in place of @flatten).",
        )
    values, vectors = eigenbasis(gram(rows, standard, crew, block_size(D, STREAM_BYTES)).astype(np.float32))
    return StreamedDesign(rows, values, vectors, standard, crew.device), np.arange(n)


def streamed_like(design: Design, rows: RowReader) -> StreamedDesign:
    """Other rows (m, D) in the same coordinates, for predictions."""
    values, back = design.values.cpu().numpy(), design.vectors_back()
    return StreamedDesign(rows, values, back, design.standard, design.device)


def _arranged(
    rows: RowReader, standard: Standardisation, crew: WorkerPool, dtype: np.dtype | type, order: np.ndarray
) -> np.ndarray:
    """All rows (n, D) standardised, in memory; row i is row order[i] of `rows`."""
    z = np.empty(rows.shape, dtype)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))

    def fill(start: int, stop: int, block: np.ndarray) -> None:
        z[place[start:stop]] = standard.apply(block)

    for _ in crew.run(fill, read_blocks(rows, BLOCK_ROWS, dtype)):
        pass
    return z


def _resident(
    z: np.ndarray, standard: Standardisation, crew: WorkerPool, edges: Sequence[int]
) -> ResidentDesign:
    """Standardised rows (n, D) in their eigenbasis; z is overwritten.

    With n < D the rows span at most n directions, and every gradient lies in their span, so that nothing is
    lost by solving there: with ZZᵀ = U Λ Uᵀ the rows are U √Λ, and coefficients go back by Zᵀ U / √Λ.
    """
    n, D = z.shape
    if min(n, D) > LARGEST_DECOMPOSITION:
        values = np.einsum("ij,ij->j", z, z, dtype=np.float64)
        return ResidentDesign(z, values, None, standard, crew.device, edges)
    if n < D:
        wide = z.astype(np.float64)
        values, vectors = eigenbasis(wide @ wide.T)
        root = np.sqrt(values)
        back = wide.T @ (vectors / root)
        return ResidentDesign((vectors * root).astype(z.dtype), values, back, standard, crew.device, edges)
    bounds = list(blocks(ArrayRows(z), BLOCK_ROWS))
    square = sum(part.astype(np.float64) for part in crew.run(lambda a, b: z[a:b].T @ z[a:b], bounds))
    values, vectors = eigenbasis(square.astype(z.dtype))
    r = len(values)

    def rotate(start: int, stop: int) -> None:
        z[start:stop, :r] = z[start:stop] @ vectors

    for _ in crew.run(rotate, bounds):
        pass
    return ResidentDesign(z[:, :r], values, vectors, standard, crew.device, edges)
