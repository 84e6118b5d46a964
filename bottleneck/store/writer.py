"""Writing a feature cache: one writer, which computes nothing twice and loses nothing that it committed.

The life of a run:

    with CacheWriter(path, spec, nodes, source_root) as writer:     # lock, recovery, comparison of settings
        plan = writer.plan(keys, stats)                             # what is missing; room on the disk
        for work in plan.work: ... writer.add(...) / take_over(...) / fail(...)
        summary = writer.finish(samples)                            # one plain file, moved into place

Shapes: I images, B images of a batch, V views.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bottleneck.errors import CacheError
from bottleneck.files import write_error
from bottleneck.samples import SampleTable
from bottleneck.store.committer import Batch, Committer, Taken
from bottleneck.store.lock import CacheLock
from bottleneck.store.plan import KnownDigests, Plan, Work, duplicates, sort_images
from bottleneck.store.rows import Record
from bottleneck.store.spec import CacheSpec, NodeSpec
from bottleneck.store.state import Existing
from bottleneck.store.tables import Failure, ImageTable, without_failed

CHANGED = "Its content changed although its size and time did not; run again."


@dataclass(frozen=True)
class Summary:
    """What a run came to: images are rows of the cache, `removed` are rows that it no longer has.

    write_seconds : that parts took in their own thread, and the finished file after it.
    """

    images: int
    computed: int
    reused: int
    failed: int
    removed: int
    write_seconds: float = 0.0


class CacheWriter:
    """The one writer of a cache; a context manager. Leaving it without `finish` keeps what was committed.

    Parameters
    ----------
    path : path of the main file, NAME.h5
    spec : CacheSpec
    nodes : NodeSpecs asked for; the cache's other vector nodes are kept up as well
    source_root : str
        What the keys are relative to.
    lock_timeout : float
        Seconds to wait for another writer.

    Attributes
    ----------
    nodes : dict of str to NodeSpec
        All nodes that new images need. Views that the cache has and that were not asked for are adopted.

    Raises
    ------
    FingerprintError
        The cache was made with other settings; `fields` names them.
    CacheError
        Another writer is at work; the cache or its parts are damaged.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        spec: CacheSpec,
        nodes: Sequence[NodeSpec],
        source_root: str,
        *,
        lock_timeout: float = 0,
    ) -> None:
        self.path = Path(path)
        self.spec = spec
        self.source_root = str(source_root).encode("utf-8", "backslashreplace").decode()
        self._lock = CacheLock(self.path, lock_timeout)
        self._existing: Existing | None = None
        self._committer: Committer | None = None
        try:
            self._existing = Existing(self.path, spec, nodes, self.source_root)
            self.nodes = self._existing.nodes
            self._committer = Committer(self._existing.parts, self.nodes)
        except OSError as error:
            self.close()
            raise write_error(error, self.path) from error
        except BaseException:
            self.close()
            raise
        self._records: dict[str, Record] = dict(self._existing.records)
        self._failures: dict[str, Failure] = dict(self._existing.failures)
        self._added: dict[tuple[str, ...], set[bytes]] = {}
        self._computed: set[str] = set()
        self._failed_now: set[str] = set()
        self._keys: tuple[str, ...] | None = None

    def plan(self, images: Sequence[str], stats: Sequence[tuple[int, int]]) -> Plan:
        """Say what is missing.

        Parameters
        ----------
        images : I keys, unique; the rows that the cache will have, in this order
        stats : (size, mtime_ns) of each; (−1, −1) where unknown
            An image of unknown stat is always read, unless `fail` was called for it before.

        Raises
        ------
        CacheError
            A key occurs twice, or the disk has too little room for the work.
        """
        twice = duplicates(images)
        if twice:
            raise CacheError(f"The image {twice[0]!r} is listed twice; keys must be unique.")
        self._keys = tuple(images)
        groups, reused, failed = sort_images(
            images, stats, self._records, self._settled, self._existing.missing, tuple(self.nodes)
        )
        work = [
            Work(nodes, np.array(rows, np.int64), KnownDigests(lambda digest, n=nodes: self._has(digest, n)))
            for nodes, rows in groups.items()
        ]
        for one in work:
            for index in one.images:
                self._failures.pop(images[index], None)
        self._existing.require_space(len(images), {one.nodes: len(one.images) for one in work})
        return Plan(work, len(reused), len(failed))

    def add(
        self,
        keys: Sequence[str],
        digests: Sequence[bytes],
        sizes: Sequence[int],
        mtimes: Sequence[int],
        features: Mapping[str, np.ndarray],
        views: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Hand over computed rows; the arrays belong to the writer from now on.

        Parameters
        ----------
        keys, digests, sizes, mtimes : B each
        features : (B, …) float32 for each of a work's nodes
        views : (B, V, …) float32 for those of the nodes that have a views recipe

        Raises
        ------
        CacheError
            At this or a later call: a value is not finite or too large for the dtype, or the disk failed.
        """
        views = views or {}
        rows = [
            (key, bytes(digest), int(size), int(mtime))
            for key, digest, size, mtime in zip(keys, digests, sizes, mtimes, strict=True)
        ]
        for name, array in features.items():
            node = self.nodes[name]
            _require_shape(name, array, (len(rows), *node.shape))
            if node.views is not None:
                _require_shape(f"{name}, views", views.get(name), (len(rows), *node.views_shape))
        self._committer.put(Batch(rows, features, views))
        added = self._added.setdefault(tuple(features), set())
        for key, digest, size, mtime in rows:
            self._note(key, digest, size, mtime)
            added.add(digest)
            self._computed.add(key)

    def take_over(self, key: str, digest: bytes, size: int, mtime_ns: int) -> None:
        """Record an image whose digest has rows, or will have by the end of this run: a copy, a rename."""
        self._committer.put(Taken((key, bytes(digest), int(size), int(mtime_ns))))
        self._note(key, bytes(digest), int(size), int(mtime_ns))

    def fail(
        self, key: str, reason: str, digest: bytes | None = None, size: int = -1, mtime_ns: int = -1
    ) -> None:
        """Record an input that gave no row. It is tried again when its size or mtime_ns differ from these."""
        failure = Failure(key, reason.replace("\0", ""), digest or bytes(32), size, mtime_ns)
        self._committer.put(failure)
        self._records.pop(key, None)
        self._failures[key] = failure
        self._failed_now.add(key)

    def finish(self, samples: SampleTable, consolidate: bool = True) -> Summary:
        """Write the finished cache and remove the parts.

        Parameters
        ----------
        samples : SampleTable
            `image` holds indices into the images of `plan`; samples with a failed image are dropped.
        consolidate : bool
            False leaves the rows in the parts, for caches too big for one file.
        """
        if self._keys is None:
            raise CacheError("A cache cannot be finished before it was planned.")
        self._committer.finish()
        started = time.perf_counter()
        self._existing.index_new_parts()
        images, row_of = self._image_table()
        failures = [self._failures[key] for key in self._keys if key in self._failures]
        table = without_failed(samples, row_of)
        summary = self._summary(images, failures)
        try:
            if consolidate:
                self._existing.finish(images, table, failures)
            else:
                self._existing.finish_in_parts(images, table, failures)
        except OSError as error:
            raise write_error(error, self.path) from error
        return replace(summary, write_seconds=self._committer.seconds + time.perf_counter() - started)

    def _image_table(self) -> tuple[ImageTable, np.ndarray]:
        """Images that have all their rows, and the row of each planned image (−1 where it has none)."""
        rows, row_of = [], np.full(len(self._keys), -1, np.int64)
        reasons = {failure.digest: failure.reason for failure in self._failures.values()}
        for index, key in enumerate(self._keys):
            record = self._records.get(key)
            if key in self._failures:
                continue
            if record is None:
                self._failures[key] = Failure(key, "It was not read in the last run.")
            elif self._existing.missing(record[0]):
                # A copy of an image that failed, or a file that changed while its size and time stayed.
                known = record[0] in reasons
                self._failures[key] = (
                    Failure(key, reasons[record[0]], *record) if known else Failure(key, CHANGED)
                )
            else:
                row_of[index] = len(rows)
                rows.append((key, *record))
        return ImageTable.of(rows), row_of

    def _summary(self, images: ImageTable, failures: list[Failure]) -> Summary:
        computed = sum(key in self._computed for key in images.key)
        removed = len(set(self._existing.keys) - set(self._keys))
        return Summary(len(images), computed, len(images) - computed, len(failures), removed)

    def _note(self, key: str, digest: bytes, size: int, mtime_ns: int) -> None:
        self._records[key] = (digest, size, mtime_ns)
        self._failures.pop(key, None)

    def _settled(self, key: str, stat: tuple[int, int]) -> bool:
        """Failed in this run already, or failed before and not changed since."""
        failure = self._failures.get(key)
        if failure is None:
            return False
        return key in self._failed_now or (stat[0] >= 0 and (failure.size, failure.mtime_ns) == tuple(stat))

    def _has(self, digest: bytes, nodes: tuple[str, ...]) -> bool:
        left = set(nodes) & set(self._existing.missing(digest))
        for names, digests in self._added.items():
            if left and digest in digests:
                left -= set(names)
        return not left

    def close(self) -> None:
        """Release the lock; what was committed stays, for the next run or in the finished file."""
        try:
            if self._committer is not None:
                self._committer.stop()
            if self._existing is not None:
                self._existing.close()
        finally:
            self._lock.release()

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def _require_shape(name: str, array: np.ndarray | None, expected: tuple[int, ...]) -> None:
    shape = None if array is None else array.shape
    if shape != expected:
        raise CacheError(f"Rows of node {name} have shape {shape}; expected {expected}.")
