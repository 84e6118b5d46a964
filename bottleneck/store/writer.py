"""Write a feature cache: one writer at a time, which computes no row twice and loses no committed row.

    with CacheWriter(path, spec, nodes, source_root) as writer:     # lock, read the state, compare settings
        plan = writer.plan(keys, stats)                             # what is missing; room on the disk
        for work in plan.work: ... writer.add(...) / take_over(...) / fail(...)
        summary = writer.finish(samples)                            # one plain file, moved into place

Shapes: I images, B images of a batch, V views.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bottleneck.errors import CacheError, Note, listed
from bottleneck.files import UNKNOWN_STAT, FileStat, write_error
from bottleneck.samples import SampleTable
from bottleneck.store.committer import Batch, Committer, Taken
from bottleneck.store.consolidate import finish_in_parts, remove_temporaries, write_cache
from bottleneck.store.index import BLOCK, Runs, hashes_of
from bottleneck.store.layout import parts_folder
from bottleneck.store.lock import CacheLock
from bottleneck.store.parts import PartsFolder
from bottleneck.store.plan import Plan, plan_run
from bottleneck.store.spec import CacheSpec, NodeSpec, Origin
from bottleneck.store.state import CacheState
from bottleneck.store.tables import CacheTables, Failure, ImageRow, ImageTable, encode, without_failed

CHANGED = "Its content changed although its size and time did not; run again."
NOT_READ = "It was not read in the last run."


@dataclass(frozen=True)
class Summary:
    """Outcome of a run: `images` rows of the cache, `removed` rows that it no longer has.

    samples : of the finished cache.
    failures : key of each input that gave no row, with the reason.
    nodes : of the finished cache, by name.
    write_seconds : time for the parts, in their own thread, and for the finished file.
    """

    images: int
    computed: int
    reused: int
    removed: int
    samples: SampleTable
    failures: dict[str, str]
    nodes: dict[str, NodeSpec]
    write_seconds: float

    @property
    def failed(self) -> int:
        return len(self.failures)


class KnownDigests(Container[bytes]):
    """The digests that have rows of all nodes `names` by now, those added in this run included."""

    def __init__(self, state: CacheState, names: Sequence[str]) -> None:
        self._state, self._names = state, names

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, bytes) and self._state.has(digest, self._names)


class CacheWriter:
    """The one writer of a cache; a context manager. Leaving it without `finish` keeps all committed rows.

    Parameters
    ----------
    path : path of the main file, NAME.h5
    spec : CacheSpec
    nodes : requested NodeSpecs; the cache's other vector nodes are completed as well
    source_root : str
        Folder or URL that the keys are relative to.
    source : str
        Folder, manifest, shard or URL that is extracted; `source_root` by default.
    moved : bool
        The cache's images are those of this source, although its root is another.
    lock_timeout : float
        Seconds to wait for another writer.
    committed : called in the writing thread after each commit; what it raises ends the run.

    Attributes
    ----------
    nodes : dict of str to NodeSpec
        All nodes that new images need. Views that the cache has and that were not requested are adopted.

    Raises
    ------
    FingerprintError
        The cache was made with other settings; `fields` names them.
    CacheError
        Another writer is at work; the cache or its parts are damaged.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        spec: CacheSpec,
        nodes: Sequence[NodeSpec],
        source_root: str,
        *,
        source: str = "",
        moved: bool = False,
        lock_timeout: float = 0,
        committed: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = Path(path)
        origin = Origin(spec, source_root, source)
        with ExitStack() as stack:
            stack.enter_context(CacheLock(self.path, lock_timeout))
            try:
                remove_temporaries(self.path)
                self._state = stack.enter_context(CacheState(self.path, origin, nodes, moved=moved))
                self.nodes = self._state.nodes
                folder = parts_folder(self.path)
                log = self._state.log
                self._parts = PartsFolder(folder, log.origin if log else origin, self.nodes, log, committed)
                stack.callback(self._parts.close)
                self._committer = Committer(self._parts)
                stack.callback(self._committer.stop)
            except OSError as error:
                raise write_error(error, self.path) from error
            self._open = stack.pop_all()
        self._keys: tuple[str, ...] | None = None
        self._failed: set[str] = set()  # keys that failed in this run

    def plan(
        self,
        keys: Sequence[str],
        stats: Sequence[FileStat] | np.ndarray,
        reread: bool = False,
        measure: bool = False,
    ) -> Plan:
        """Return what is missing, as `plan_run` does. Keys for which `fail` was called count as failed.

        Raises
        ------
        CacheError
            As `plan_run`, or the disk has too little room for the work.
        """
        plan = plan_run(self._state, keys, stats, given_up=self._failed, reread=reread, measure=measure)
        self._keys = tuple(keys)
        if self._state.failures:
            for work in plan.work:
                for index in work.images:
                    self._state.failures.pop(keys[index], None)  # tried again
        plan.require_space(self.path.parent)
        return plan

    @property
    def is_new(self) -> bool:
        """Whether the cache has neither a record nor a failure of any image."""
        return not (self._state.records or self._state.failures)

    def has_rows(self, key: str) -> bool:
        """Return whether the cache has all rows of the image `key`, of whatever bytes it was then."""
        return self._state.has_record(key)

    def known(self, names: Sequence[str]) -> Container[bytes]:
        """Return the digests that need no computation for the nodes `names`: `take_over` their images."""
        return KnownDigests(self._state, names)

    def add(
        self,
        images: Sequence[ImageRow],
        features: Mapping[str, np.ndarray],
        views: Mapping[str, np.ndarray] | None = None,
        measures: np.ndarray | None = None,
        engines: Mapping[str, str] | None = None,
    ) -> None:
        """Add computed rows; the arrays belong to the writer from now on.

        Parameters
        ----------
        images : (key, digest, stat) of B images
        features : (B, …) float32 for each of a work's nodes; none where only measures are added
        views : (B, V, …) float32 for those of the nodes that have a views recipe
        measures : (B, 7) float32, `names.MEASURES` of the images' pixels
        engines : by node, the name of the engine that computed its rows; the same in all of a run

        Raises
        ------
        CacheError
            At this or a later call: a value is not finite or too large for the dtype, or the disk failed.
        """
        views = views or {}
        rows = [(key, bytes(digest), FileStat(*stat)) for key, digest, stat in images]
        for name, array in features.items():
            node = self.nodes[name]
            _require_shape(name, array, (len(rows), *node.shape))
            if node.views is not None:
                _require_shape(f"{name}, views", views.get(name), (len(rows), *node.views_shape))
        measured: dict[bytes, bytes] = {}
        if measures is not None:
            lines = np.ascontiguousarray(measures, np.float32)
            measured = {digest: line.tobytes() for (_, digest, _), line in zip(rows, lines, strict=True)}
        self._committer.put(Batch(rows, features, views, measured, engines or {}))
        self._state.add_rows(tuple(features), [digest for _, digest, _ in rows])

    def take_over(self, key: str, digest: bytes, stat: FileStat) -> None:
        """Record an image whose digest has rows, or will have by the end of this run: a copy, a rename."""
        self._committer.put(Taken((key, bytes(digest), FileStat(*stat))))

    def fail(
        self,
        key: str,
        reason: str,
        digest: bytes | None = None,
        stat: FileStat = UNKNOWN_STAT,
        *,
        passing: bool = False,
    ) -> None:
        """Record an input that gave no row. It is tried again if `passing`, or when its file has changed."""
        failure = Failure(key, reason.replace("\0", ""), digest or bytes(32), FileStat(*stat), passing)
        self._committer.put(failure)
        self._state.catalog.add_failure(failure)
        self._failed.add(key)

    def finish(self, samples: SampleTable, consolidate: bool = True) -> Summary:
        """Write the finished cache and remove the parts.

        Parameters
        ----------
        samples : SampleTable
            `image` holds indices into the keys of `plan`; samples with a failed image are dropped.
        consolidate : bool
            False leaves the rows in the parts, for caches too big for one file.
        """
        if self._keys is None:
            raise CacheError("A cache cannot be finished before it was planned.")
        self._committer.finish()
        started = time.perf_counter()
        computed = self._enter_new_parts()
        hashes = hashes_of(self._keys)
        images, row_of, at = self._finished_images(self._keys, hashes)
        failures = [self._state.failures[key] for key in self._keys if key in self._state.failures]
        tables = CacheTables(images, without_failed(samples, row_of), failures)
        try:
            if consolidate:
                write_cache(self._state, tables)
                self._parts.remove()
            else:
                finish_in_parts(self._state, self._parts, tables)
        except OSError as error:
            raise write_error(error, self.path) from error
        new = int(computed[at].sum())
        named = Runs()
        named.add(hashes)
        return Summary(
            images=len(images),
            computed=new,
            reused=len(images) - new,
            removed=int((named.find(self._state.finished) < 0).sum()),
            samples=tables.samples,
            failures={failure.key: failure.reason for failure in failures},
            nodes=self._state.all_nodes,
            write_seconds=self._committer.seconds + time.perf_counter() - started,
        )

    def _enter_new_parts(self) -> np.ndarray:
        """Enter what this run committed. Returns (n,) bool by record, whether this run computed its image."""
        records, spans = self._state.records, []
        for entry in self._parts.take_new():
            start = len(records)
            spans.append((start, start + self._state.add_part(entry)))
        self._state.catalog.settle()
        computed = np.zeros(len(records), bool)
        for start, stop in spans:
            computed[start:stop] = True
        return computed

    def _finished_images(
        self, keys: Sequence[str], hashes: np.ndarray
    ) -> tuple[ImageTable, np.ndarray, np.ndarray]:
        """Return the images that have all their rows, the row of each key (−1 if it has none), and the
        records of the images. Each other key is made a failure.
        """
        state = self._state
        records, catalog = state.records, state.catalog
        at = records.find(hashes)
        complete = np.zeros(len(at), bool)
        for start in range(0, len(at), BLOCK):
            rows = start + np.flatnonzero(at[start : start + BLOCK] >= 0)
            complete[rows] = ~state.missing(records.digest[at[rows]]).any(axis=1)
        if len(state.failures):
            complete &= np.array([key not in state.failures for key in keys], bool)
        failed = {failure.digest: failure for failure in state.failures.values()}
        for index in np.flatnonzero(~complete).tolist():
            key = keys[index]
            if key in state.failures:
                continue
            copy = failed.get(records.digest[at[index]].tobytes()) if at[index] >= 0 else None
            if copy is not None:  # a copy of an image that failed
                stat = FileStat(*records.stat[at[index]].tolist())
                catalog.add_failure(replace(copy, key=key, stat=stat))
            else:
                reason = NOT_READ if at[index] < 0 else CHANGED
                catalog.add_failure(Failure(key, reason, passing=True))
        kept = np.flatnonzero(complete)
        row_of = np.full(len(keys), -1, np.int64)
        row_of[kept] = np.arange(len(kept))
        digest = records.digest[at[kept]]
        name = encode([keys[index] for index in kept.tolist()])
        images = ImageTable(name, digest, records.stat[at[kept]], catalog.measures(digest))
        return images, row_of, at[kept]

    @property
    def notes(self) -> list[Note]:
        """A note on files in the parts folder that no run has written, if there are any."""
        foreign, folder = self._parts.foreign, self._parts.path
        if not foreign:
            return []
        message = f"{folder} holds what no run has written: {listed(foreign, 3)}; it is left there."
        return [Note("foreign-files-left", message, details={"files": list(foreign)})]

    def close(self) -> None:
        """Release the lock; what was committed stays, for the next run or in the finished file."""
        self._open.close()

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _require_shape(name: str, array: np.ndarray | None, expected: tuple[int, ...]) -> None:
    shape = None if array is None else array.shape
    if shape != expected:
        raise CacheError(f"Rows of node {name} have shape {shape}; expected {expected}.")
