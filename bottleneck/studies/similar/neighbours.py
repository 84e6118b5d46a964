"""Nearest rows by cosine, and groups of rows that look alike, in bounded memory.

Cosines are computed block by block, so that neither all rows nor all pairs are in memory at once.

Shapes: n rows, Q queries, D features, k neighbours, B × R cosines of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bottleneck.heads.row_blocks import block_size, blocks, read_checked
from bottleneck.samples import RowReader

QUERY_BYTES = 64 << 20  # of queries that are compared together; the rows are read once for each such block
CELLS = 1 << 22  # cosines of a block
JOINED = 1 << 19  # cosines of a block whose look-alikes are joined at once, since all of them may be
ROUNDING = 1e-6  # error of a cosine: the threshold is lowered by it, so that equal rows reach 1
NONE = -1  # in place of a row's index

Advance = Callable[[int], None]


def nearest(
    rows: RowReader,
    queries: RowReader,
    count: int,
    exclude: np.ndarray,
    advance: Advance = lambda pairs: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the rows nearest to each query.

    Parameters
    ----------
    rows : (n, D), queries : (Q, D)
    count : neighbours of each query; k = min(count, n)
    exclude : (Q,) int, the row that is no neighbour of a query, being the query itself; NONE excludes nothing
    advance : called with the number of pairs compared

    Returns
    -------
    index (Q, k) int64 and cosine (Q, k) float32, the nearest first, of equal ones the earlier row first; NONE
    and −inf where there are no more rows. The cosine with a row of zeros is 0.

    Raises
    ------
    FitError
        A feature is NaN or infinite.
    """
    k = min(count, rows.shape[0])
    index = np.full((queries.shape[0], k), NONE, np.int64)
    cosine = np.full(index.shape, -np.inf, np.float32)
    for start, first, block in _cosines(queries, rows):
        here = slice(start, start + len(block))
        inside = exclude[here] - first
        itself = np.flatnonzero((exclude[here] != NONE) & (inside >= 0) & (inside < block.shape[1]))
        block[itself, inside[itself]] = -np.inf
        _keep_best(index[here], cosine[here], block, first)
        advance(block.size)
    index[np.isneginf(cosine)] = NONE
    order = np.lexsort((index, -cosine), axis=1)
    return np.take_along_axis(index, order, 1), np.take_along_axis(cosine, order, 1).clip(max=1)


def look_alikes(
    rows: RowReader, threshold: float, advance: Advance = lambda pairs: None
) -> tuple[np.ndarray, int]:
    """Group rows that are linked by cosines of `threshold` or more, directly or through other rows.

    Returns
    -------
    group : (n,) int64, the first row of each row's group; a row without look-alikes is a group of its own
    pairs : number of pairs that reach the threshold

    Raises
    ------
    FitError
        A feature is NaN or infinite.
    """
    groups, pairs = Groups(rows.shape[0]), 0
    for start, first, block in _cosines(rows, rows, above=True):
        b = np.arange(first, first + block.shape[1])
        step = max(1, JOINED // len(b))
        for at in range(0, len(block), step):
            near = block[at : at + step] >= threshold - ROUNDING
            a = np.arange(start + at, start + at + len(near))
            near &= a[:, None] < b
            pairs += int(near.sum())
            near &= groups.roots(a)[:, None] != groups.roots(b)
            left, right = np.nonzero(near)
            groups.join(a[left], b[right])
        advance(block.size)
    return groups.roots(np.arange(rows.shape[0])), pairs


class Groups:
    """Disjoint sets of 0 … n−1 (union-find), joined many pairs at a time. The least member is the root."""

    def __init__(self, n: int) -> None:
        self._parent = np.arange(n)

    def roots(self, members: np.ndarray) -> np.ndarray:
        """Return the roots of the members' sets."""
        root = self._parent[members]
        while not np.array_equal(root, parent := self._parent[root]):
            root = parent
        self._parent[members] = root
        return root

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        """Unite the sets of a[i] and b[i], for each i."""
        if not len(a):
            return
        ends = np.stack([self.roots(a), self.roots(b)])
        roots, nodes = np.unique(ends, return_inverse=True)
        links = coo_array((np.ones(nodes.shape[1], bool), tuple(nodes)), shape=(len(roots), len(roots)))
        _, component = connected_components(links, directed=False)
        _, least = np.unique(component, return_index=True)  # roots are sorted
        self._parent[roots] = roots[least[component]]


def _cosines(
    queries: RowReader, rows: RowReader, above: bool = False
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (first query, first row, cosines (B, R)). `above` leaves out rows before the queries."""
    width = rows.shape[1]
    for start, stop in blocks(queries, block_size(width, QUERY_BYTES)):
        left = _unit(read_checked(queries, start, stop))
        step = max(1, CELLS // len(left))
        for first, last in blocks(rows, block_size(width)):
            if above and last <= start:
                continue
            right = _unit(read_checked(rows, first, last))
            for at in range(0, len(right), step):
                yield start, first + at, left @ right[at : at + step].T


def _unit(block: np.ndarray) -> np.ndarray:
    """Scale rows to length 1; a row of zeros stays."""
    tiny = np.finfo(block.dtype).tiny
    block = block / np.maximum(np.abs(block).max(axis=1, keepdims=True), tiny)  # squares cannot overflow
    return block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), tiny)


def _keep_best(index: np.ndarray, cosine: np.ndarray, block: np.ndarray, first: int) -> None:
    """Merge the cosines (B, R) of the rows from `first` on into the k best so far, in place."""
    k = index.shape[1]
    both = np.concatenate([cosine, block], axis=1)
    best = np.argpartition(both, -k, axis=1)[:, -k:]
    old = np.take_along_axis(index, np.minimum(best, k - 1), 1)
    index[:] = np.where(best < k, old, best - k + first)
    cosine[:] = np.take_along_axis(both, best, 1)
