"""The catalog of several cache files: the row of each digest, and the record or failure of each key.

Shapes: N digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bottleneck.store.cachefile import CacheFile, FilePool
from bottleneck.store.parts import PartEntry, require_intact
from bottleneck.store.rows import ABSENT, FeatureRows
from bottleneck.store.spec import NodeSpec
from bottleneck.store.tables import Failure, Record, as_bytes


@dataclass(frozen=True)
class _Column:
    """Datasets of one file and the digests of their rows, except the `damaged` ones. file : its number."""

    file: int
    datasets: frozenset[str]
    digest: np.ndarray
    damaged: frozenset[int] = frozenset()


class Catalog:
    """Rows by digest and records by key.

    If two files hold a record of one key, the file that was added later counts. If two files hold the row of
    one digest, the one added first is read; both rows are equal.

    A finished cache needs no dictionary of its millions of digests: if the requested images are in the order
    of one file's rows, comparing the two digest columns is enough. The dictionary is made when files overlap
    or rows have moved.

    Attributes
    ----------
    pool : FilePool
        Closes every file that was added.
    records : dict of key to (digest, stat)
    failures : dict of key to Failure; no key is in both
    """

    def __init__(self) -> None:
        self.pool = FilePool()
        self.records: dict[str, Record] = {}
        self.failures: dict[str, Failure] = {}
        self._paths: list[Path] = []
        self._columns: list[_Column] = []
        self._rows: dict[frozenset[str], dict[bytes, tuple[int, int]]] = {}  # by datasets: see `_lookup`
        self._entered = 0  # number of columns whose digests are in `_rows`

    def add_rows(self, file: CacheFile, damage: Mapping[str, np.ndarray] | None = None) -> None:
        """Enter where the file's rows are; `damage` has the rows of some datasets that count as absent."""
        damage = damage or {}
        number, digest = len(self._paths), file.images.digest
        datasets = frozenset(path for node in file.nodes.values() for path in node.datasets)
        self._paths.append(file.path)
        self._columns.append(_Column(number, datasets.difference(damage), digest))
        for dataset, rows in damage.items():
            self._columns.append(_Column(number, frozenset([dataset]), digest, frozenset(rows.tolist())))

    def add_keys(self, file: CacheFile) -> None:
        """Enter the file's images, those that use rows of other images, and its failures."""
        for table in (file.images, file.image_group("taken")):
            for key, digest, stat in table.rows():
                self.add_record(key, (digest, stat))
        for failure in file.failures:
            self.add_failure(failure)

    def add_record(self, key: str, record: Record) -> None:
        """Enter an image in place of what was known of its key."""
        self.records[key] = record
        self.failures.pop(key, None)

    def add_failure(self, failure: Failure) -> None:
        """Enter a failure in place of what was known of its key."""
        self.failures[failure.key] = failure
        self.records.pop(failure.key, None)

    def open_part(self, folder: Path, entry: PartEntry, thorough: bool) -> CacheFile:
        """Open a committed file of a parts folder (`thorough`: after comparing its sha256 with the log's)."""
        require_intact(folder, entry, thorough)
        return self.pool.get(folder / entry.name)

    def missing(self, digest: bytes, datasets: tuple[str, ...]) -> set[str]:
        """Return those of `datasets` in which the digest has no row."""
        left = set(datasets)
        for group, rows in self._lookup().items():
            if not left:
                break
            if not left.isdisjoint(group) and digest in rows:
                left -= group
        return left

    def rows(self, node: NodeSpec, digest: np.ndarray, views: bool = False) -> FeatureRows:
        """Return the node's features, or its views, of digest (N, 32) in that order; rows may be absent."""
        dataset = node.dataset(views)
        files, row = self._locate(digest, dataset)
        shape = (len(row), *(node.views_shape if views else node.shape))
        return FeatureRows(
            self.pool, self._paths, dataset, files=files, row=row, shape=shape, dtype=node.dtype
        )

    def _locate(self, digest: np.ndarray, dataset: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the file number (N,) int32 and row (N,) int64 of each digest; ABSENT if it has none."""
        for column in self._columns:
            if dataset in column.datasets and not column.damaged and np.array_equal(column.digest, digest):
                return np.full(len(digest), column.file, np.int32), np.arange(len(digest))
        groups = [rows for group, rows in self._lookup().items() if dataset in group]
        files, row = np.full(len(digest), ABSENT, np.int32), np.full(len(digest), ABSENT, np.int64)
        for index, one in enumerate(as_bytes(digest)):
            for rows in groups:
                if one in rows:
                    files[index], row[index] = rows[one]
                    break
        return files, row

    def _lookup(self) -> dict[frozenset[str], dict[bytes, tuple[int, int]]]:
        """Return (file number, row) by digest of all files, grouped by the datasets that the files hold."""
        for column in self._columns[self._entered :]:
            rows = self._rows.setdefault(column.datasets, {})
            for row, one in enumerate(as_bytes(column.digest)):
                if row not in column.damaged:
                    rows.setdefault(one, (column.file, row))
        self._entered = len(self._columns)
        return self._rows

    def close(self) -> None:
        """Close every file."""
        self.pool.close()
