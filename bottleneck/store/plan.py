"""What a run has to compute, decided before any image is read.

An image's size and modification time are only a shortcut to its digest; rows are looked up by digest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bottleneck.store.rows import Record


@dataclass(frozen=True)
class Work:
    """Images to be read, and the nodes to be computed for those that turn out not to be known.

    Parameters
    ----------
    nodes : tuple of str
        Node names, in the writer's order.
    images : (B,) int64
        Indices into the images given to `plan`, ascending.
    known : container of bytes
        Digests that have rows for all of `nodes` by now, those added in this run included. An image
        with such a digest is taken over, not computed.
    """

    nodes: tuple[str, ...]
    images: np.ndarray
    known: KnownDigests


@dataclass(frozen=True)
class Plan:
    """What a run has to do.

    Parameters
    ----------
    work : list of Work, none of them empty
    reused : int
        Images whose rows all exist and whose file has not changed.
    failed : int
        Images that failed before and have not changed since.
    """

    work: list[Work] = field(default_factory=list)
    reused: int = 0
    failed: int = 0


class KnownDigests:
    """A live container of the digests for which nothing is missing."""

    def __init__(self, is_complete: Callable[[bytes], bool]) -> None:
        self._is_complete = is_complete

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, bytes) and self._is_complete(digest)


def sort_images(
    images: Sequence[str],
    stats: Sequence[tuple[int, int]],
    records: Mapping[str, Record],
    settled: Callable[[str, tuple[int, int]], bool],
    missing: Callable[[bytes], tuple[str, ...]],
    all_nodes: tuple[str, ...],
) -> tuple[dict[tuple[str, ...], list[int]], list[int], list[int]]:
    """Sort images into work by the nodes they lack, the reused and the failed.

    Parameters
    ----------
    records : what is known of each key: digest, size, mtime_ns.
    settled : True for a key and stat that failed and need not be tried again.
    missing : names of the nodes that a digest has no rows for.
    """
    work: dict[tuple[str, ...], list[int]] = {}
    reused, failed = [], []
    for index, (key, stat) in enumerate(zip(images, stats, strict=True)):
        if settled(key, stat):
            failed.append(index)
            continue
        record = records.get(key)
        unchanged = record is not None and stat[0] >= 0 and record[1:] == tuple(stat)
        nodes = missing(record[0]) if unchanged else all_nodes
        if nodes:
            work.setdefault(nodes, []).append(index)
        else:
            reused.append(index)
    last = work.pop(all_nodes, None)  # copies of the images before them are then known
    if last is not None:
        work[all_nodes] = last
    return work, reused, failed


def duplicates(keys: Iterable[str]) -> list[str]:
    """Keys that occur more than once."""
    seen: set[str] = set()
    return [key for key in keys if key in seen or seen.add(key)]
