"""What a number of files say together: where each digest's rows lie, and what became of each key."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bottleneck.store.cachefile import CacheFile, dataset_paths
from bottleneck.store.log import PartEntry
from bottleneck.store.parts import require_intact
from bottleneck.store.rows import FeatureRows, FilePool, RowIndex
from bottleneck.store.spec import NodeSpec
from bottleneck.store.tables import Failure, link_name

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
