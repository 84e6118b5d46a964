"""Decide what a run has to compute, before any image is read. Nothing here reads or writes a file.

Size, times and number of an image's file are only a shortcut to its digest (FORMAT.md, 4.5); rows are looked
up by digest. A changed file must never pass for the old one. Files that are trusted too seldom cost reading,
not computing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.errors import CacheError, Note
from bottleneck.files import FileStat, require_space
from bottleneck.store.cachefile import describe_rows
from bottleneck.store.state import CacheState
from bottleneck.store.tables import Failure

SECOND = 10**9  # ns
EARLIEST = 315_705_600 * SECOND  # 1980-01-03: zip's and FAT's first day, 0 and −1 are no times of change
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
        require_space(folder, self.disk_bytes, f"Extracting {self.to_read} images")


def plan_run(
    state: CacheState,
    keys: Sequence[str],
    stats: Sequence[FileStat],
    given_up: Collection[str] = (),
    reread: bool = False,
    measure: bool = False,
) -> Plan:
    """Return what is missing in a cache.

    Parameters
    ----------
    keys : I unique keys; the rows that the cache will have, in this order
    stats : of each image; one that does not vouch for the content (`trusted`) has the image read
    given_up : keys that are known to give no row
    reread : read every image, also those whose file has not changed
    measure : read images whose pixels have not been measured

    Raises
    ------
    CacheError
        A key occurs twice; or the source is another than the cache's and has few of its images.
    """
    twice = duplicates(keys)
    if twice:
        raise CacheError(f"The image {twice[0]!r} is listed twice; keys must be unique.")
    notes = [*_damage_notes(state), *_removal_notes(state, keys)]
    every = tuple(state.nodes)
    groups: dict[tuple[str, ...], list[int]] = {}
    counts: Counter[tuple[str, ...]] = Counter()
    reused = failed = 0
    stats = [FileStat(*stat) for stat in stats]
    trust = [False] * len(stats) if reread else trusted(stats)
    for index, (key, stat) in enumerate(zip(keys, stats, strict=True)):
        failure, record = state.failures.get(key), state.records.get(key)
        if key in given_up or _settled(failure, stat, trust[index]):
            failed += 1
            continue
        lacking = every if record is None else state.missing(record[0])
        unchanged = record is not None and trust[index] and record[1] == stat
        if record is not None and unchanged and not lacking:
            reused += 1
            if not measure or record[0] in state.catalog.measured:
                continue
        groups.setdefault(lacking if unchanged else every, []).append(index)
        same_size = record is not None and record[1].size == stat.size  # it has probably not changed
        counts[lacking if same_size else every] += 1
    if every in groups:
        groups[every] = groups.pop(every)  # last: by then the digests of the other groups are known
    return Plan(
        work=[Work(nodes, np.array(rows, np.int64)) for nodes, rows in groups.items()],
        reused=reused,
        failed=failed,
        feature_bytes=_feature_bytes(state, counts),
        disk_bytes=_disk_bytes(state, len(keys), counts),
        notes=notes,
    )


def _settled(failure: Failure | None, stat: FileStat, trust: bool) -> bool:
    """Return True if an image failed before and trying again cannot help: its bytes are the same."""
    return failure is not None and not failure.passing and trust and failure.stat == stat


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


def _removal_notes(state: CacheState, keys: Sequence[str]) -> list[Note]:
    """Return notes on removed rows; CacheError if a source that is not the cache's has few of its images."""
    cached, source = state.cached_source, state.origin.source
    if cached is None:
        return []
    notes = []
    removed = len(state.records.keys() - set(keys))
    if cached != source and not state.moved:
        if 2 * removed > len(state.records):
            raise CacheError(
                f"{state.path} is the cache of {cached}; {source} names {len(state.records) - removed} of "
                f"its {len(state.records)} images, so the rows of {removed} would be removed.",
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
                f"The rows of {removed} images that {source} does not name are removed from {state.path}.",
                changes_result=True,
                details={"removed": removed, "before": len(state.records)},
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


def duplicates(keys: Iterable[Any]) -> list[Any]:
    """Return the keys that occur more than once."""
    seen: set[Any] = set()
    twice: list[Any] = []
    for key in keys:
        if key in seen:
            twice.append(key)
        seen.add(key)
    return twice


def trusted(stats: Sequence[FileStat]) -> list[bool]:
    """Return for each file of one source whether an unchanged `FileStat` means unchanged content.

    - A time of the last status change that is finer than a second comes from the kernel's clock. Whoever
      writes the file, or swaps it with another, changes it or the inode. Nobody can set it.
    - A version tag of a store changes with the content.
    - Other times can be set, or are one constant for all files: they are trusted only where no other file has
      the same size and times, and few have the same time.
    """
    coarse = [stat for stat in stats if stat.size >= 0 and not _vouched(stat)]
    pairs = Counter(stat[:3] for stat in coarse)
    times = Counter(stat[1:3] for stat in coarse)
    most = max(FEW, RARE * len(stats))
    return [
        stat.size >= 0
        and (
            _vouched(stat)
            or (stat.mtime_ns >= EARLIEST and pairs[stat[:3]] == 1 and times[stat[1:3]] <= most)
        )
        for stat in stats
    ]


def _vouched(stat: FileStat) -> bool:
    if stat.ctime_ns < 0:
        return stat.inode >= 0  # a version tag
    return stat.ctime_ns >= EARLIEST and stat.ctime_ns % SECOND != 0
