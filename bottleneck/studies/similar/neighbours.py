"""Queries as features, their nearest rows by cosine, and groups of rows that look alike, in bounded memory.

Queries are read from the cache, or computed as the cache's rows were. Cosines are computed block by block, so
that neither all rows nor all pairs are in memory at once.

Shapes: n rows, Q queries, D features, k neighbours, B × R cosines of a block.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bottleneck.data.loader import LoadedImage
from bottleneck.data.source import image_files
from bottleneck.errors import BottleneckError, Note
from bottleneck.extraction.config import ExtractConfig
from bottleneck.extraction.pipeline import Batch, Trunk
from bottleneck.extraction.prepare import open_trunk
from bottleneck.extraction.settings import resolve
from bottleneck.heads.row_blocks import block_size, blocks, read_checked
from bottleneck.samples import ArrayRows, RowReader
from bottleneck.store.reader import FeatureCache
from bottleneck.threads import available_cores, one_thread

QUERY_BYTES = 64 << 20  # of queries that are compared together; the rows are read once for each such block
CELLS = 1 << 22  # cosines of a block
JOINED = 1 << 19  # cosines of a block whose look-alikes are joined at once, since all of them may be
ROUNDING = 1e-6  # error of a cosine: the threshold is lowered by it, so that equal rows reach 1
NONE = -1  # in place of a row's index
MOST_COMPARED = 20_000  # keys among which the one meant by a mistyped name is searched

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

    def compare(here: slice, left: np.ndarray, right: np.ndarray, first: int) -> None:
        block = left @ right.T
        inside = exclude[here] - first
        itself = np.flatnonzero((exclude[here] != NONE) & (inside >= 0) & (inside < len(right)))
        block[itself, inside[itself]] = -np.inf
        _keep_best(index[here], cosine[here], block, first)

    cores = available_cores()
    with one_thread(), ThreadPoolExecutor(cores) as pool:
        for start, first, left, right in _pairs(queries, rows):
            step = -(-len(left) // cores)
            shares = [slice(at, min(at + step, len(left))) for at in range(0, len(left), step)]
            parts = [
                pool.submit(compare, slice(start + at.start, start + at.stop), left[at], right, first)
                for at in shares
            ]
            for part in parts:
                part.result()
            advance(len(left) * len(right))
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
    for start, first, left, right in _pairs(rows, rows, above=True):
        block = left @ right.T
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


def _pairs(
    queries: RowReader, rows: RowReader, above: bool = False
) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """Yield (first query, first row, queries (B, D), rows (R, D)) of length 1, whose products are cosines.

    above : leave out rows before the queries
    """
    width = rows.shape[1]
    for start, stop in blocks(queries, block_size(width, QUERY_BYTES)):
        left = _unit(read_checked(queries, start, stop))
        step = max(1, CELLS // len(left))
        for first, last in blocks(rows, block_size(width)):
            if above and last <= start:
                continue
            right = _unit(read_checked(rows, first, last))
            for at in range(0, len(right), step):
                yield start, first + at, left, right[at : at + step]


def _unit(block: np.ndarray) -> np.ndarray:
    """Scale rows to length 1; a row of zeros stays."""
    tiny = np.finfo(block.dtype).tiny
    block = block / np.maximum(np.abs(block).max(axis=1, keepdims=True), tiny)  # squares cannot overflow
    return block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), tiny)


def _keep_best(index: np.ndarray, cosine: np.ndarray, block: np.ndarray, first: int) -> None:
    """Merge the cosines (B, R) of the rows from `first` on into the k best so far, in place.

    After some blocks few queries find a nearer row, and only those are sorted.
    """
    k = index.shape[1]
    hit = np.flatnonzero(block.max(axis=1) > cosine.min(axis=1))
    both = np.concatenate([cosine[hit], block[hit]], axis=1)
    best = np.argpartition(both, -k, axis=1)[:, -k:]
    old = np.take_along_axis(index[hit], np.minimum(best, k - 1), 1)
    index[hit] = np.where(best < k, old, best - k + first)
    cosine[hit] = np.take_along_axis(both, best, 1)


@dataclass(frozen=True)
class Queries:
    """Images whose neighbours are searched.

    images : Q names: keys, or paths and URLs as they were given.
    rows : (Q, D) features.
    cached_row : (Q,) int64, the query's row in the cache; NONE for an image from elsewhere.
    failed : reason by the name of an image that cannot be used.
    startup_seconds : time for loading the network.
    engines : that computed images, each {"engine", "precision", "nodes"}. notes : on that.
    """

    images: Sequence[str]
    rows: RowReader
    cached_row: np.ndarray
    failed: dict[str, str] = field(default_factory=dict)
    startup_seconds: float = 0.0
    engines: Sequence[dict[str, Any]] = ()
    notes: Sequence[Note] = ()


def every_image(cache: FeatureCache, node: str) -> Queries:
    """Return all images of the cache as queries."""
    rows = cache.features(node)
    return Queries(cache.images.key.tolist(), rows, np.arange(len(rows)))


def named_images(cache: FeatureCache, images: Sequence[str], config: ExtractConfig) -> Queries:
    """Return the named images as queries, each once.

    Parameters
    ----------
    images : keys of the cache, or paths or URLs of image files
    config : the node, and how to run the network for images that are not in the cache

    Raises
    ------
    BottleneckError
        A name is neither key nor file, or none of the images can be used.
    """
    names = list(dict.fromkeys(map(str, images)))
    cached_row, failed, others = _located(cache, names)
    (node,) = config.nodes
    stored = cache.features(node)
    features = {name: stored.take(np.array([row]))[0] for name, row in cached_row.items()}
    startup, engines, notes = 0.0, list[dict[str, Any]](), tuple[Note, ...]()
    if others:
        trunk = open_trunk(resolve(config, cache.path, cache.spec, cache.nodes))
        row_of = dict(_rows(cache))
        for name, row in _computed(cache, trunk, others, node):
            if isinstance(row, str):
                failed[name] = row
            else:
                features[name], cached_row[name] = row, _source_row(name, cache, row_of)
        startup, engines, notes = trunk.startup_seconds, trunk.engines_used, trunk.notes
    usable = [name for name in names if name in features]
    if names and not usable:
        reason = f"{names[0]} {failed[names[0]]}"
        raise BottleneckError(f"None of the images can be looked for: {reason}.")
    x = np.array([features[name] for name in usable], np.float32).reshape(len(usable), stored.shape[1])
    rows = np.array([cached_row[name] for name in usable], np.int64)
    return Queries(usable, ArrayRows(x), rows, failed, startup, engines, notes)


def _rows(cache: FeatureCache) -> Iterator[tuple[str, int]]:
    return ((key, row) for row, key in enumerate(cache.images.key))


def _located(cache: FeatureCache, names: Sequence[str]) -> tuple[dict[str, int], dict[str, str], list[str]]:
    """Sort names into keys with their rows, images with the reason why extraction failed, and other files."""
    row_of = {unicodedata.normalize("NFC", key): row for key, row in _rows(cache)} | dict(_rows(cache))
    cached: dict[str, int] = {}
    failed: dict[str, str] = {}
    others = []
    for name in names:
        row = row_of.get(name, row_of.get(unicodedata.normalize("NFC", name)))
        if row is not None:
            cached[name] = row
        elif name in cache.failures:
            failed[name] = f"gave no features when the cache was made: {cache.failures[name]}"
        elif "://" in name or os.path.isfile(name):
            others.append(name)
        else:
            raise _unknown_name(name, cache)
    return cached, failed, others


def _unknown_name(name: str, cache: FeatureCache) -> BottleneckError:
    """Error for a name that is neither key nor file, with the keys that may have been meant."""
    keys = cache.images.key.tolist()
    file = name.rpartition("/")[2]
    close = [key for key in keys if key.rpartition("/")[2] == file][:3]
    close = close or get_close_matches(name, keys[:MOST_COMPARED], n=3, cutoff=0.5)
    what = "is a folder" if Path(name).is_dir() else "is neither one of them nor a file"
    return BottleneckError(
        f"{cache.path} holds {len(keys):,} images; {name} {what}.",
        f"Did you mean {', '.join(close)}?" if close else f"They are named like {keys[0]}.",
    )


def _computed(
    cache: FeatureCache, trunk: Trunk, paths: Sequence[str], node: str
) -> Iterator[tuple[str, np.ndarray | str]]:
    """Yield each file with its features (D,), or with the reason why it has none.

    A file with the same bytes as an image of the cache takes that row. Only others need the network.
    """
    stored = cache.features(node)
    known = {digest: row for row, digest in enumerate(cache.images.digests())}
    new: dict[bytes | None, np.ndarray] = {}
    copies: list[LoadedImage] = []
    for item in trunk.stream(image_files(paths), paths, [node], known=known):
        if isinstance(item, Batch):
            for image, row in zip(item.images, item.features[0], strict=True):
                new[image.digest] = row
                yield image.key, row
        elif item.error is not None:
            yield item.key, item.error
        elif item.digest in known:
            yield item.key, stored.take(np.array([known[item.digest]]))[0]
        else:  # a copy of an earlier file, whose batch may still be waiting
            copies.append(item)
    yield from ((image.key, new[image.digest]) for image in copies)


def _source_row(path: str, cache: FeatureCache, row_of: dict[str, int]) -> int:
    """Row of the image file `path` if it lies in the cache's source, else NONE."""
    folder, file = os.path.split(os.path.abspath(path))
    inside = os.path.relpath(os.path.realpath(folder), os.path.realpath(cache.source_root))
    return row_of.get(Path(inside, file).as_posix(), NONE)
