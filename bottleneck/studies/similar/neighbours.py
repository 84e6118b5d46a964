"""Rows that point the same way: the nearest by cosine, and groups of look-alikes. Bounded memory at any size.

Cosines are computed block against block, so neither all rows nor all pairs are ever held.

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
JOINED = 1 << 19  # of them among which look-alikes are joined at once; all may be
ROUNDING = 1e-6  # of a cosine: equal rows are not told apart by it
NONE = -1

Advance = Callable[[int], None]


def nearest(
    rows: RowReader, queries: RowReader, count: int, own: np.ndarray, advance: Advance = lambda pairs: None
) -> tuple[np.ndarray, np.ndarray]:
    """The rows nearest to each query.

    Parameters
    ----------
    rows : (n, D), queries : (Q, D)
    count : how many; k = min(count, n)
    own : (Q,) int, the row that a query is itself and that is left out; NONE for a query from elsewhere
    advance : called with the number of pairs compared

    Returns
    -------
    index (Q, k) int64 and cosine (Q, k) float32, the nearest first and among equals the earlier row; NONE and
    −inf where there are no more rows. The cosine with a row of zeros is 0.

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
        inside = own[here] - first
        itself = np.flatnonzero((own[here] != NONE) & (inside >= 0) & (inside < block.shape[1]))
        block[itself, inside[itself]] = -np.inf
        _keep_best(index[here], cosine[here], block, first)
        advance(block.size)
    index[np.isneginf(cosine)] = NONE
    order = np.lexsort((index, -cosine), axis=1)
    return np.take_along_axis(index, order, 1), np.take_along_axis(cosine, order, 1).clip(max=1)


def look_alikes(
    rows: RowReader, threshold: float, advance: Advance = lambda pairs: None
) -> tuple[np.ndarray, int]:
    """Groups of rows that are linked by cosines of `threshold` or more, directly or over other rows.

    Returns
    -------
    group : (n,) int64, the first row of each row's group; a row without look-alikes is its own
    pairs : how many pairs reach the threshold

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
    """Disjoint sets of 0 … n−1, joined many pairs at a time; a set is named by its least member."""

    def __init__(self, n: int) -> None:
        self._above = np.arange(n)

    def roots(self, members: np.ndarray) -> np.ndarray:
        """The names of the members' sets."""
        root = self._above[members]
        while not np.array_equal(root, above := self._above[root]):
            root = above
        self._above[members] = root
        return root

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        """Unite the sets of a[i] and b[i], for each i."""
        if not len(a):
            return
        ends = np.stack([self.roots(a), self.roots(b)])
        names, place = np.unique(ends, return_inverse=True)
        links = coo_array((np.ones(place.shape[1], bool), tuple(place)), shape=(len(names), len(names)))
        _, component = connected_components(links, directed=False)
        _, least = np.unique(component, return_index=True)  # names ascend
        self._above[names] = names[least[component]]


def _cosines(
    queries: RowReader, rows: RowReader, above: bool = False
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Start of the queries, start of the rows, cosines (B, R). `above` leaves out rows before the queries."""
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
    """Rows of length 1; a row of zeros stays."""
    tiny = np.finfo(block.dtype).tiny
    block = block / np.maximum(np.abs(block).max(axis=1, keepdims=True), tiny)  # squares cannot overflow
    return block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), tiny)


def _keep_best(index: np.ndarray, cosine: np.ndarray, block: np.ndarray, first: int) -> None:
    """Take the cosines (B, R) of the rows from `first` on into the k best so far, in place."""
    k = index.shape[1]
    both = np.concatenate([cosine, block], axis=1)
    best = np.argpartition(both, -k, axis=1)[:, -k:]
    old = np.take_along_axis(index, np.minimum(best, k - 1), 1)
    index[:] = np.where(best < k, old, best - k + first)
    cosine[:] = np.take_along_axis(both, best, 1)
