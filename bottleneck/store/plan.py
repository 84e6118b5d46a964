"""Decide what a run has to compute, before any image is read. Nothing here reads or writes a file.

Size, times and number of an image's file are only a shortcut to its digest (FORMAT.md, 4.5); rows are looked
up by digest. A changed file must never pass for the old one. Files that are trusted too seldom cost reading,
not computing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bottleneck.errors import CacheError, Note, counted
from bottleneck.files import EARLIEST, SECOND, FileStat, require_space
from bottleneck.store.cachefile import describe_rows
from bottleneck.store.index import BLOCK, hashes_of, repeated
from bottleneck.store.state import CacheState
from bottleneck.store.tables import Failure

FEW = 2  # files, or
RARE = 0.01  # of the source, may share a time that is trusted
TABLE_BYTES = 512  # of one image in the tables, for the estimate of disk space


@dataclass(frozen=True)
class Work:
    """Images to be read, and the nodes to be computed of those whose digest turns out to have no rows.

    Parameters
    ----------
    nodes : tuple of str
        Node names, in the order of the cache state's; none where only the pixels are measured.
    images : (B,) int64
        Indices into the keys given to `plan_run`, ascending.
    """

    nodes: tuple[str, ...]
    images: np.ndarray


@dataclass(frozen=True)
class Plan:
    """What a run has to do.

    Parameters
    ----------
    work : list of Work, none of them empty
    reused : int
        Images that have all rows and whose file has not changed.
    failed : int
        Images that failed before and have not changed since.
    feature_bytes : int
        Bytes of the rows to be computed, if images of the recorded size are unchanged; a renamed or copied
        image needs fewer.
    disk_bytes : int
        Free disk that the run needs: its parts, and the new files that are made from them.
    notes : list of Note
        Damaged rows, rows that the run removes, and another source than the cache's.
    """

    work: list[Work] = field(default_factory=list)
    reused: int = 0
    failed: int = 0
    feature_bytes: int = 0
    disk_bytes: int = 0
    notes: list[Note] = field(default_factory=list)

    @property
    def to_read(self) -> int:
        """Number of images to be read."""
        return sum(len(work.images) for work in self.work)

    def require_space(self, folder: Path) -> None:
        """Raise CacheError if the disk of `folder` has too little room for the run."""
        require_space(folder, self.disk_bytes, f"Extracting {counted(self.to_read, 'image')}")


def plan_run(
    state: CacheState,
    keys: Sequence[str],
    stats: Sequence[FileStat] | np.ndarray,
    given_up: Collection[str] = (),
    reread: bool = False,
    measure: bool = False,
) -> Plan:
    """Return what is missing in a cache.

    Parameters
    ----------
    keys : I unique keys; the rows that the cache will have, in this order
    stats : of each image, or (I, 4) int64; one that does not vouch for the content (`trusted`) has it read
    given_up : keys that are known to give no row
    reread : read every image, also those whose file has not changed
    measure : read images whose pixels have not been measured

    Raises
    ------
    CacheError
        A key occurs twice; or the source is another than the cache's and has few of its images.
    """
    hashes = hashes_of(keys)
    twice = repeated(hashes)
    if len(twice):
        raise CacheError(f"The image {keys[twice[0]]!r} is listed twice; keys must be unique.")
    rows = stats if isinstance(stats, np.ndarray) else [FileStat(*stat) for stat in stats]
    files = np.asarray(rows, np.int64).reshape(-1, len(FileStat._fields))
    trust = np.zeros(len(files), bool) if reread else trusted(files)
    failed = np.zeros(len(files), bool)
    for index, key in enumerate(keys) if state.failures or given_up else ():
        settled = key in state.failures and _settled(state.failures[key], files[index], trust[index])
        failed[index] = settled or key in given_up
    need = _Need(state, measure)
    for start in range(0, len(keys), BLOCK):
        block = slice(start, start + BLOCK)
        need.add(start, hashes[block], files[block], trust[block], failed[block])
    return Plan(
        work=need.work(),
        reused=need.reused,
        failed=int(failed.sum()),
        feature_bytes=_feature_bytes(state, need.counts),
        disk_bytes=_disk_bytes(state, len(keys), need.counts),
        notes=[*_damage_notes(state), *_removal_notes(state, need.known)],
    )


class _Need:
    """What the images need, block by block.

    reused : images that have all rows and whose file has not changed.
    known : keys that have a record.
    counts : images by the nodes that they lack, if those of the recorded size are unchanged.
    """

    def __init__(self, state: CacheState, measure: bool) -> None:
        self.reused, self.known = 0, 0
        self.counts: Counter[tuple[str, ...]] = Counter()
        self._state, self._measure, self._every = state, measure, tuple(state.nodes)
        self._groups: dict[tuple[str, ...], list[np.ndarray]] = {}

    def add(
        self, start: int, hashes: np.ndarray, files: np.ndarray, trust: np.ndarray, failed: np.ndarray
    ) -> None:
        """Add B images. hashes (B, 16) of their keys, files (B, 4), trust and failed (B,) bool."""
        state, records = self._state, self._state.records
        at = records.find(hashes)
        known = at >= 0
        self.known += int(known.sum())
        at = np.where(known, at, 0)
        lacks = np.full((len(at), len(self._every)), True)
        same, same_size = np.zeros(len(at), bool), np.zeros(len(at), bool)
        measured = np.zeros(len(at), bool)
        if known.any():
            digest, stat = records.digest[at[known]], records.stat[at[known]]
            lacks[known] = state.missing(digest)
            same[known] = (stat == files[known]).all(axis=1) & trust[known]
            same_size[known] = stat[:, 0] == files[known, 0]
            if self._measure:
                measured[known] = ~state.catalog.unmeasured(digest)
        complete = same & ~lacks.any(axis=1) & ~failed
        self.reused += int(complete.sum())
        left = ~failed & ~(complete & (measured | (not self._measure)))
        for nodes, rows in self._by_nodes(lacks | ~same[:, None], left):
            self._groups.setdefault(nodes, []).append(start + rows)
        for nodes, rows in self._by_nodes(lacks | ~same_size[:, None], left):
            self.counts[nodes] += len(rows)

    def _by_nodes(self, lacks: np.ndarray, left: np.ndarray) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
        """Yield the nodes that images lack, and the images (n,) of those `left` that lack just these."""
        rows = np.flatnonzero(left)
        patterns, which = np.unique(lacks[rows], axis=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            nodes = tuple(name for name, lacking in zip(self._every, pattern, strict=True) if lacking)
            yield nodes, rows[which.reshape(-1) == number]

    def work(self) -> list[Work]:
        """Return the images to be read by nodes; in the order in which they come, those of all nodes last.

        By then the digests of the other groups are known.
        """
        groups = {nodes: np.concatenate(rows) for nodes, rows in self._groups.items()}
        order = sorted(groups, key=lambda nodes: (nodes == self._every, groups[nodes][0]))
        return [Work(nodes, groups[nodes]) for nodes in order]


def _settled(failure: Failure, stat: np.ndarray, trust: bool) -> bool:
    """Return True if trying again an image that failed cannot help: its bytes are the same."""
    return not failure.passing and trust and failure.stat == tuple(stat.tolist())


def _damage_notes(state: CacheState) -> list[Note]:
    """Return notes on what is damaged in the finished files and made anew."""
    notes = [
        Note(
            "rows-damaged",
            f"{path}: {describe_rows(dataset, rows)}; what is damaged is made anew and nothing else.",
            details={"file": str(path), "dataset": f"/{dataset}", "rows": rows.tolist()},
        )
        for path, damage in state.damage.items()
        for dataset, rows in damage.items()
    ]
    notes += [
        Note(
            "part-damaged",
            f"{fault} It is not used: its images are computed again.",
            details={"file": str(path)},
        )
        for path, fault in state.damaged_parts.items()
    ]
    if state.damaged_samples:
        what = f"{state.damaged_samples} Samples and labels are taken from {state.origin.source} again."
        notes.append(Note("samples-damaged", what, details={"file": str(state.path)}))
    return notes


def _removal_notes(state: CacheState, known: int) -> list[Note]:
    """Return notes on removed rows; CacheError if a source that is not the cache's has few of its images.

    known : number of the source's images of which the cache has a record
    """
    cached, source = state.cached_source, state.origin.source
    if cached is None:
        return []
    notes = []
    before = len(state.records.positions())
    removed = before - known
    if cached != source and not state.moved:
        if 2 * removed > before:
            raise CacheError(
                f"{state.path} is the cache of {cached}; {source} names {known} of "
                f"its {counted(before, 'image')}, so the rows of {removed} would be removed.",
                f"Give another file with -o, or delete {state.path} to replace it.",
            )
        notes.append(
            Note(
                "cache-source-changed",
                f"{state.path} was made from {cached} and is now the cache of {source}.",
                changes_result=True,
                details={"before": cached, "source": source},
            )
        )
    if removed:
        notes.append(
            Note(
                "rows-removed",
                f"The rows of {counted(removed, 'image')} that {source} does not name are removed from "
                f"{state.path}.",
                changes_result=True,
                details={"removed": removed, "before": before},
            )
        )
    return notes


def _feature_bytes(state: CacheState, counts: Mapping[tuple[str, ...], int]) -> int:
    """Return the bytes of the rows to be computed; `counts` is the number of images by missing nodes."""
    return sum(state.nodes[name].bytes_of(count) for names, count in counts.items() for name in names)


def _disk_bytes(state: CacheState, images: int, counts: Mapping[tuple[str, ...], int]) -> int:
    """Return the bytes of the parts, and of the files that consolidation writes beside the old ones."""
    computed = sum(counts.values())
    if not computed:
        return 0
    need = (images + computed) * TABLE_BYTES + _feature_bytes(state, counts)
    for name, node in state.nodes.items():
        new = sum(count for names, count in counts.items() if name in names)
        if not node.is_map:
            need += node.bytes_of(images)
        elif new:
            companion = state.companions.get(name)
            need += node.bytes_of(new + (len(companion.images) if companion else 0))
    return need


def trusted(stats: np.ndarray) -> np.ndarray:
    """Return (I,) bool for the files (I, 4) of one source: whether an unchanged one has unchanged content.

    - A time of the last status change that is finer than a second comes from the kernel's clock. Whoever
      writes the file, or swaps it with another, changes it or the inode. Nobody can set it.
    - A version tag of a store changes with the content.
    - Other times can be set, or are one constant for all files: they are trusted only where no other file has
      the same size and times, and few have the same time.
    """
    size, mtime, ctime, inode = stats.T
    tag = (ctime < 0) & (inode >= 0)
    trust = (size >= 0) & (tag | ((ctime >= EARLIEST) & (ctime % SECOND != 0)))
    coarse = np.flatnonzero((size >= 0) & ~trust)
    if len(coarse):
        most = max(FEW, RARE * len(stats))
        alone = _occurrences(stats[coarse, :3]) == 1
        trust[coarse] = alone & (mtime[coarse] >= EARLIEST) & (_occurrences(stats[coarse, 1:3]) <= most)
    return trust


def _occurrences(rows: np.ndarray) -> np.ndarray:
    """Return how often each of the rows (n, k) occurs."""
    _, which, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    return counts[which.reshape(-1)]
