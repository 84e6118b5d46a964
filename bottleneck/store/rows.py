"""What a number of files say together: where each digest's rows lie, and what became of each key.

Rows of features read in any order from one or many files, in bounded memory.

Shapes: I images, D features, V views, S samples, M images per sample, P covariates.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from math import prod
from pathlib import Path
from shlex import quote

import h5py
import numpy as np

from bottleneck.errors import CacheError, first_line
from bottleneck.samples import SampleTable
from bottleneck.store.cachefile import CacheFile, dataset_paths
from bottleneck.store.layout import BLOCK_BYTES, blocks_of
from bottleneck.store.parts import PartEntry, require_intact
from bottleneck.store.spec import NodeSpec
from bottleneck.store.tables import Failure, as_bytes, link_name

MAX_OPEN = 64
ABSENT = -1


class FilePool:
    """Files by path, opened when first asked for; at most MAX_OPEN parts are open at a time.

    Files that were handed over open (`keep`) stay so: their path may by now name a newer file.
    """

    def __init__(self) -> None:
        self._kept: dict[Path, CacheFile] = {}
        self._open: OrderedDict[Path, CacheFile] = OrderedDict()

    def keep(self, file: CacheFile) -> None:
        """Take over an open file."""
        self._kept[file.path] = file

    def get(self, path: Path) -> CacheFile:
        """The open file at `path`."""
        if path in self._kept:
            return self._kept[path]
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        while len(self._open) >= MAX_OPEN:
            self._open.popitem(last=False)[1].close()
        self._open[path] = CacheFile(path)
        return self._open[path]

    def close(self) -> None:
        """Close every file."""
        for file in [*self._kept.values(), *self._open.values()]:
            file.close()
        self._kept.clear()
        self._open.clear()


class RowIndex:
    """Where the row of each digest lies, for each dataset.

    Digests are looked up one by one only where files overlap or rows have moved. Images in the order of one
    file's rows, as all are in a finished cache, are found by comparing the two columns: millions of images
    then cost no dictionary.
    """

    def __init__(self) -> None:
        self.files: list[Path] = []
        self._columns: list[tuple[frozenset[str], np.ndarray]] = []
        self._groups: dict[frozenset[str], dict[bytes, tuple[int, int]]] = {}
        self._looked_up = 0  # files whose digests are in `_groups`

    def add(self, path: Path, datasets: Iterable[str], digest: np.ndarray) -> None:
        """Row i of each of the `datasets` is that of digest[i] (N, 32); rows known before stay theirs."""
        self.files.append(path)
        self._columns.append((frozenset(datasets), digest))

    def missing(self, digest: bytes, datasets: Iterable[str]) -> set[str]:
        """Those of `datasets` in which the digest has no row."""
        left = set(datasets)
        for group, rows in self._tables().items():
            if not left:
                break
            if not left.isdisjoint(group) and digest in rows:
                left -= group
        return left

    def locate(self, digest: np.ndarray, dataset: str) -> tuple[np.ndarray, np.ndarray]:
        """File number (N,) int32 and row (N,) int64 of each digest (N, 32); ABSENT where it has none."""
        for number, (datasets, column) in enumerate(self._columns):
            if dataset in datasets and np.array_equal(column, digest):
                return np.full(len(digest), number, np.int32), np.arange(len(digest))
        groups = [rows for group, rows in self._tables().items() if dataset in group]
        which, row = np.full(len(digest), ABSENT, np.int32), np.full(len(digest), ABSENT, np.int64)
        for at, one in enumerate(as_bytes(digest)):
            for rows in groups:
                if one in rows:
                    which[at], row[at] = rows[one]
                    break
        return which, row

    def _tables(self) -> dict[frozenset[str], dict[bytes, tuple[int, int]]]:
        """(file number, row) by digest, of all files added, by the datasets that they hold."""
        for number in range(self._looked_up, len(self.files)):
            datasets, column = self._columns[number]
            rows = self._groups.setdefault(datasets, {})
            for row, one in enumerate(as_bytes(column)):
                rows.setdefault(one, (number, row))
        self._looked_up = len(self.files)
        return self._groups


class FeatureRows:
    """Rows of one dataset in the order of a cache's images, wherever they lie.

    Attributes
    ----------
    shape : (I, D), or (I, C, H, W) … for a map, with V after I for views
    dtype : float16 or float32
    """

    def __init__(
        self,
        pool: FilePool,
        files: Sequence[Path],
        dataset: str,
        which: np.ndarray,
        row: np.ndarray,
        row_shape: tuple[int, ...],
        dtype: str,
    ) -> None:
        self._pool, self._files, self._dataset = pool, files, dataset
        self._which, self._row = which, row
        self.shape = (len(row), *row_shape)
        self.dtype = np.dtype(dtype)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def absent(self) -> np.ndarray:
        """Indices of the rows that lie nowhere; they cannot be read."""
        return np.flatnonzero(self._which == ABSENT)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start … stop−1, shape (stop − start, …)."""
        start, stop, _ = slice(start, stop).indices(len(self))
        return self._gather(self._which[start:stop], self._row[start:stop])

    def take(self, indices: np.ndarray) -> np.ndarray:
        """The rows `indices` (B,), in that order, repeats allowed; shape (B, …)."""
        indices = np.asarray(indices, np.int64)
        return self._gather(self._which[indices], self._row[indices])

    def blocks(self, block_bytes: int = BLOCK_BYTES) -> Iterator[np.ndarray]:
        """All rows in order, in blocks of bounded size."""
        row_bytes = prod(self.shape[1:]) * self.dtype.itemsize
        for start, stop in blocks_of(len(self), row_bytes, block_bytes):
            yield self.read(start, stop)

    def _gather(self, which: np.ndarray, row: np.ndarray) -> np.ndarray:
        out = np.empty((len(row), *self.shape[1:]), self.dtype)
        for number in np.unique(which):
            path = self._files[number]
            here = np.flatnonzero(which == number)
            here = here[np.argsort(row[here], kind="stable")]
            try:
                _fill(out, here, self._pool.get(path).rows_of(self._dataset), row[here])
            except (OSError, RuntimeError, ValueError, KeyError) as error:
                raise CacheError(
                    f"/{self._dataset} of {path} cannot be read: {first_line(error)}.",
                    f"See `bottleneck cache verify {quote(str(path))}`.",
                ) from None
        return out


def _fill(out: np.ndarray, where: np.ndarray, dataset: h5py.Dataset, rows: np.ndarray) -> None:
    """out[where] = dataset[rows] for ascending rows, by runs that lie in the same or neighbouring chunks."""
    row_bytes = max(1, prod(dataset.shape[1:]) * dataset.dtype.itemsize)
    for start, stop in _runs(rows, dataset.chunks[0], max(1, BLOCK_BYTES // row_bytes)):
        source, target = rows[start:stop], where[start:stop]
        span = slice(int(source[0]), int(source[-1]) + 1)
        if _consecutive(source) and _consecutive(target):  # as nearly always: no copy on the way
            dataset.read_direct(out, span, slice(int(target[0]), int(target[-1]) + 1))
        else:
            out[target] = dataset[span][source - span.start]


def _runs(rows: np.ndarray, step: int, longest: int) -> Iterator[tuple[int, int]]:
    """Bounds of runs of ascending rows with gaps of up to `step`, that span up to `longest` rows each."""
    gaps = np.flatnonzero(np.diff(rows) > step) + 1
    for start, end in pairwise([0, *gaps.tolist(), len(rows)]):
        while start < end:
            stop = start + int(np.searchsorted(rows[start:end], rows[start] + longest))
            yield start, stop
            start = stop


def _consecutive(numbers: np.ndarray) -> bool:
    return bool((np.diff(numbers) == 1).all())


class SampleRows:
    """Rows of samples: the M images' features side by side, then the P covariates as they are.

    Attributes
    ----------
    shape : (S, M·D + P), with views (S, V, M·D + P)
    dtype : that of the features; float32 with covariates
    """

    def __init__(self, features: FeatureRows, samples: SampleTable, rows: np.ndarray | None = None) -> None:
        self._features = features
        self._image = samples.image if rows is None else samples.image[rows]
        covariates = samples.covariates if rows is None else samples.covariates[rows]
        self._covariates = covariates.astype(np.float32)
        width = self._image.shape[1] * features.shape[-1] + covariates.shape[1]
        self.shape = (len(self._image), *features.shape[1:-1], width)
        self.dtype = np.dtype(np.float32) if covariates.shape[1] else features.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start … stop−1."""
        start, stop, _ = slice(start, stop).indices(len(self))
        return self.take(np.arange(start, stop))

    def take(self, indices: np.ndarray) -> np.ndarray:
        """The rows `indices`, in that order."""
        image, covariates = self._image[indices], self._covariates[indices]
        if image.shape[1] == 1 and not covariates.shape[1]:
            return self._features.take(image[:, 0])
        out = np.empty((len(image), *self.shape[1:]), self.dtype)
        width = self._features.shape[-1]
        for m in range(image.shape[1]):
            out[..., m * width : (m + 1) * width] = self._features.take(image[:, m])
        if covariates.shape[1]:
            out[..., image.shape[1] * width :] = covariates.reshape(
                len(image), *(1,) * (out.ndim - 2), covariates.shape[1]
            )
        return out


Record = tuple[bytes, int, int]  # digest, size, mtime_ns


class Catalog:
    """Files taken in one after the other; of what two say of a key, the later holds.

    Attributes
    ----------
    index : RowIndex
    pool : FilePool
        Closes every file that was taken in.
    records : dict of key to (digest, size, mtime_ns)
    failures : dict of key to Failure; no key is in both
    """

    def __init__(self) -> None:
        self.index, self.pool = RowIndex(), FilePool()
        self.records: dict[str, Record] = {}
        self.failures: dict[str, Failure] = {}

    def add_rows(self, file: CacheFile) -> None:
        """Take in where the file's rows lie."""
        paths = [path for node in file.nodes.values() for path in dataset_paths(node)]
        self.index.add(file.path, paths, file.images.digest)

    def add_keys(self, file: CacheFile) -> None:
        """Take in what the file says of keys: its images, those taken over, its failures."""
        for table in (file.images, file.image_group("taken")):
            for key, digest, size, mtime in table.rows():
                self.records[key] = (digest, size, mtime)
                self.failures.pop(key, None)
        for failure in file.failures:
            self.failures[failure.key] = failure
            self.records.pop(failure.key, None)

    def rows(self, node: NodeSpec, digest: np.ndarray, views: bool = False) -> FeatureRows:
        """The node's rows (`views`: its views) of digest (N, 32), in that order; some may be absent."""
        dataset = f"{'views' if views else 'features'}/{link_name(node.name)}"
        which, row = self.index.locate(digest, dataset)
        shape = node.views_shape if views else node.shape
        return FeatureRows(self.pool, self.index.files, dataset, which, row, shape, node.dtype)

    def open_part(self, folder: Path, entry: PartEntry, thorough: bool) -> CacheFile:
        """Open a committed file of a parts folder (`thorough`: after comparing its sha256 with the log's)."""
        require_intact(folder, entry, thorough)
        return self.pool.get(folder / entry.name)

    def close(self) -> None:
        """Close every file."""
        self.pool.close()
