"""Decide whether a source at another place is the one that a cache was made from: its images decide."""

from __future__ import annotations

import hashlib

import numpy as np

from bottleneck.data.source import Source
from bottleneck.errors import ImageError, Note
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import Origin

COMPARED = 32  # images that are read


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
    why = f": all of {compared} images that were compared are the same" if compared else ", as stated"
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
