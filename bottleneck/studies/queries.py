"""Images to look for, as features: those of a cache by key, any other computed by the cache's own recipe.

Shapes: I images of the cache, Q queries, D features.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from bottleneck.data.loader import LoadedImage
from bottleneck.data.samples import image_files
from bottleneck.errors import BottleneckError
from bottleneck.heads.rows import ArrayRows, RowReader
from bottleneck.request import ExtractConfig, Request
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.neighbours import NONE
from bottleneck.trunk import Batch, Trunk

MOST_COMPARED = 20_000  # keys among which a mistyped one is looked for


@dataclass(frozen=True)
class Queries:
    """What neighbours are looked for of.

    Parameters
    ----------
    images : sequence of Q names: keys, or paths and URLs as they were given
    rows : (Q, D) features
    own : (Q,) int64, the row of the cache that a query is itself; NONE for an image from elsewhere
    failed : reason by the name of an image that cannot be used
    startup_seconds : spent on loading the network
    """

    images: Sequence[str]
    rows: RowReader
    own: np.ndarray
    failed: dict[str, str] = field(default_factory=dict)
    startup_seconds: float = 0.0


def every_image(cache: FeatureCache, node: str) -> Queries:
    """All images of the cache."""
    rows = cache.features(node)
    return Queries(cache.images.key, rows, np.arange(len(rows)))


def named_images(cache: FeatureCache, images: Sequence[str], config: ExtractConfig) -> Queries:
    """The images named, each once.

    Parameters
    ----------
    images : keys of the cache, or paths or URLs of image files
    config : its node, and how to run the network where it is needed

    Raises
    ------
    BottleneckError
        A name is neither key nor file, or none of the images can be used.
    """
    names = list(dict.fromkeys(map(str, images)))
    own, failed, others = _located(cache, names)
    (node,) = config.nodes
    stored = cache.features(node)
    features = {name: stored.take(np.array([row]))[0] for name, row in own.items()}
    startup = 0.0
    if others:
        trunk = Request(config, image_files(others), cache.path).trunk
        row_of = dict(_rows(cache))
        for name, row in _computed(cache, trunk, others, node):
            if isinstance(row, str):
                failed[name] = row
            else:
                features[name], own[name] = row, _own_row(name, cache, row_of)
        startup = trunk.startup_seconds
    used = [name for name in names if name in features]
    if names and not used:
        reason = f"{names[0]} {failed[names[0]]}"
        raise BottleneckError(f"None of the images can be looked for: {reason}.")
    x = np.array([features[name] for name in used], np.float32).reshape(len(used), stored.shape[1])
    return Queries(used, ArrayRows(x), np.array([own[name] for name in used], np.int64), failed, startup)


def _rows(cache: FeatureCache) -> Iterator[tuple[str, int]]:
    return ((key, row) for row, key in enumerate(cache.images.key))


def _located(cache: FeatureCache, names: Sequence[str]) -> tuple[dict[str, int], dict[str, str], list[str]]:
    """Rows of the names that are keys, reasons of those that failed at extraction, and the other files."""
    row_of = {unicodedata.normalize("NFC", key): row for key, row in _rows(cache)} | dict(_rows(cache))
    own: dict[str, int] = {}
    failed: dict[str, str] = {}
    others = []
    for name in names:
        row = row_of.get(name, row_of.get(unicodedata.normalize("NFC", name)))
        if row is not None:
            own[name] = row
        elif name in cache.failures:
            failed[name] = f"gave no features when the cache was made: {cache.failures[name]}"
        elif "://" in name or os.path.isfile(name):
            others.append(name)
        else:
            raise _unknown(name, cache)
    return own, failed, others


def _unknown(name: str, cache: FeatureCache) -> BottleneckError:
    """Neither key nor file: what may have been meant."""
    keys = cache.images.key.tolist()
    file = name.rpartition("/")[2]
    close = [key for key in keys if key.rpartition("/")[2] == file][:3]
    close = close or get_close_matches(name, keys[:MOST_COMPARED], n=3, cutoff=0.5)
    what = "is a folder" if Path(name).is_dir() else "is neither one of them nor a file"
    return BottleneckError(
        f"{cache.path} holds {len(keys):,} images; {name} {what}.",
        f"Did you mean {', '.join(close)}?" if close else f"They are named like {keys[0]}.",
    )


def _computed(
    cache: FeatureCache, trunk: Trunk, paths: Sequence[str], node: str
) -> Iterator[tuple[str, np.ndarray | str]]:
    """Each file with its features (D,), or the reason why it has none.

    A file whose bytes the cache knows takes over that row; the network is loaded for others alone.
    """
    stored = cache.features(node)
    known = {digest: row for row, digest in enumerate(cache.images.digests())}
    new: dict[bytes, np.ndarray] = {}
    copies: list[LoadedImage] = []
    for item in trunk.stream(image_files(paths), paths, [node], known=known):
        if isinstance(item, Batch):
            for image, row in zip(item.images, item.features[0], strict=True):
                new[image.digest] = row
                yield image.key, row
        elif item.error is not None:
            yield item.key, item.error
        elif item.digest in known:
            yield item.key, stored.take(np.array([known[item.digest]]))[0]
        else:  # of an earlier file, whose batch may still be waiting
            copies.append(item)
    yield from ((image.key, new[image.digest]) for image in copies)


def _own_row(path: str, cache: FeatureCache, row_of: dict[str, int]) -> int:
    """The row of the image that lies at `path`, if that is in the cache's source."""
    folder, file = os.path.split(os.path.abspath(path))
    inside = os.path.relpath(os.path.realpath(folder), os.path.realpath(cache.source_root))
    return row_of.get(Path(inside, file).as_posix(), NONE)
