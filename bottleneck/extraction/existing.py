"""Compare a source with the cache that exists: moved images, other splits, kept statistics, lost rows.

A source at another place than the cache's is taken for the same if its images are.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np

from bottleneck.data.source import Source
from bottleneck.errors import CacheError, ImageError, Note, counted
from bottleneck.extraction.pipeline import BATCH_SIZE
from bottleneck.files import UNKNOWN_STAT, FileStat
from bottleneck.store.layout import parts_folder
from bottleneck.store.plan import Plan
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import Origin

COMPARED = 32  # images that are read


def open_existing(path: Path) -> FeatureCache | None:
    """Open the finished cache at `path`, or the parts of an interrupted run if it committed any."""
    if path.exists():
        return FeatureCache(path)
    if not parts_folder(path).exists():
        return None
    try:
        return FeatureCache(path)
    except CacheError:  # nothing was committed yet; damaged parts are reported by the writer
        return None


def moved_note(cache: FeatureCache, source: Source, stated: bool) -> Note | None:
    """Return a note where the images of `cache` are now in `source`, whose root is another; else None.

    That is so if the user states it (--source-moved), or if `source` has most of the cache's keys,
    relative to their roots, and images spread over them have the digests of the cache.
    """
    if Origin(cache.spec, source.root).source_root == cache.source_root:
        return None
    compared = 0 if stated else _equal_images(cache, source)
    if not stated and not compared:
        return None
    why = (
        f": {counted(compared, 'image was compared and is', 'images were compared and all are')} the same"
        if compared
        else ", as stated"
    )
    return Note(
        "source-moved",
        f"The images of {cache.path} have moved from {cache.source} to {source.location}{why}.",
        details={"before": cache.source, "source": source.location},
    )


def _equal_images(cache: FeatureCache, source: Source) -> int:
    """Return the number of images compared; 0 if most keys are absent or a digest differs."""
    present = set(source.images)
    rows = np.flatnonzero([key in present for key in cache.images.key])
    if 2 * len(rows) <= len(cache.images):
        return 0
    spread = rows[np.unique(np.linspace(0, len(rows) - 1, COMPARED).astype(int))]
    try:
        for key, digest in zip(cache.images.key[spread], cache.images.digest[spread], strict=True):
            if hashlib.sha256(source.read(key)).digest() != bytes(digest):
                return 0
    except (ImageError, OSError):
        return 0
    return len(spread)


def resplit_notes(cache: FeatureCache, source: Source) -> list[Note]:
    """Return a note on samples of `cache` that `source` has in another split."""
    try:
        before = dict(zip(cache.samples.key, cache.samples.split, strict=True))
    except CacheError:  # damaged samples, which are written anew with a note of their own
        return []
    pairs = zip(source.samples.key, source.samples.split, strict=True)
    moves = Counter((before[key], split) for key, split in pairs if before.get(key, split) != split)
    if not moves:
        return []
    shown = ", ".join(f"{count:,} {old} → {new}" for (old, new), count in sorted(moves.items()))
    text = (
        f"{counted(moves.total(), 'sample')} of {cache.path} changed to another split: {shown}. "
        "Figures of heads and models that were fitted before are of other samples; compare none of "
        "them with new ones."
    )
    details = {"moves": {f"{old} → {new}": count for (old, new), count in sorted(moves.items())}}
    return [Note("splits-changed", text, True, details)]


def statistics_notes(cache: FeatureCache, source: Source) -> list[Note]:
    """Return a note where a random network keeps the BatchNorm statistics of a first run on few images."""
    few, now = len(cache.images), len(source.images)
    if not cache.spec.backbone.get("calibrated") or few >= min(BATCH_SIZE, now):
        return []
    text = (
        "The random network keeps the BatchNorm statistics of its first run, which had "
        f"{counted(few, 'image')}; now "
        f"there are {now:,}. Write another cache with -o to take them from up to {BATCH_SIZE}."
    )
    return [Note("batchnorm-statistics-kept", text, True, {"images": few})]


def refuse_limit(source: Source, plan: Plan, path: Path) -> None:
    """Raise CacheError where a limit leaves the cache with fewer images than it has."""
    for note in plan.notes:
        few = note.code == "rows-removed" and len(source.images) < note.details["before"]
        if few and source.limit is not None:
            raise CacheError(
                f"With --limit {source.limit}, the rows of {note.details['removed']} of "
                f"{counted(note.details['before'], 'image')} would be removed from {path}.",
                "Leave --limit out, or give another file with -o.",
            )


def keys_and_stats(source: Source, is_new: bool) -> tuple[tuple[str, ...], list[FileStat]]:
    """Return the keys of all inputs, those known to be absent last, with the file of each.

    is_new : the cache knows no image, so that no file can be unchanged, and none is asked for.
    """
    stats = [UNKNOWN_STAT for _ in source.images] if is_new else source.stats(source.images)
    return (*source.images, *source.absent), [*stats, *(UNKNOWN_STAT for _ in source.absent)]
