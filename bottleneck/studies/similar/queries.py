"""Images whose neighbours are searched, as features: read from the cache, or computed as the cache's were.

Shapes: Q queries, D features.
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
from bottleneck.data.source import image_files
from bottleneck.errors import BottleneckError
from bottleneck.extraction.config import ExtractConfig
from bottleneck.extraction.pipeline import Batch, Trunk
from bottleneck.extraction.prepare import open_trunk
from bottleneck.extraction.settings import resolve
from bottleneck.samples import ArrayRows, RowReader
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.similar.neighbours import NONE

MOST_COMPARED = 20_000  # keys among which the one meant by a mistyped name is searched


@dataclass(frozen=True)
class Queries:
    """Images whose neighbours are searched.

    images : Q names: keys, or paths and URLs as they were given.
    rows : (Q, D) features.
    cached_row : (Q,) int64, the query's row in the cache; NONE for an image from elsewhere.
    failed : reason by the name of an image that cannot be used.
    startup_seconds : time for loading the network.
    """

    images: Sequence[str]
    rows: RowReader
    cached_row: np.ndarray
    failed: dict[str, str] = field(default_factory=dict)
    startup_seconds: float = 0.0


def every_image(cache: FeatureCache, node: str) -> Queries:
    """Return all images of the cache as queries."""
    rows = cache.features(node)
    return Queries(cache.images.key.tolist(), rows, np.arange(len(rows)))


def named_images(cache: FeatureCache, images: Sequence[str], config: ExtractConfig) -> Queries:
    """Return the named images as queries, each once.

    Parameters
    ----------
    images : keys of the cache, or paths or URLs of image files
    config : the node, and how to run the network for images that are not in the cache

    Raises
    ------
    BottleneckError
        A name is neither key nor file, or none of the images can be used.
    """
    names = list(dict.fromkeys(map(str, images)))
    cached_row, failed, others = _located(cache, names)
    (node,) = config.nodes
    stored = cache.features(node)
    features = {name: stored.take(np.array([row]))[0] for name, row in cached_row.items()}
    startup = 0.0
    if others:
        trunk = open_trunk(resolve(config, cache.path, cache.spec, cache.nodes))
        row_of = dict(_rows(cache))
        for name, row in _computed(cache, trunk, others, node):
            if isinstance(row, str):
                failed[name] = row
            else:
                features[name], cached_row[name] = row, _source_row(name, cache, row_of)
        startup = trunk.startup_seconds
    usable = [name for name in names if name in features]
    if names and not usable:
        reason = f"{names[0]} {failed[names[0]]}"
        raise BottleneckError(f"None of the images can be looked for: {reason}.")
    x = np.array([features[name] for name in usable], np.float32).reshape(len(usable), stored.shape[1])
    rows = np.array([cached_row[name] for name in usable], np.int64)
    return Queries(usable, ArrayRows(x), rows, failed, startup)


def _rows(cache: FeatureCache) -> Iterator[tuple[str, int]]:
    return ((key, row) for row, key in enumerate(cache.images.key))


def _located(cache: FeatureCache, names: Sequence[str]) -> tuple[dict[str, int], dict[str, str], list[str]]:
    """Sort names into keys with their rows, images with the reason why extraction failed, and other files."""
    row_of = {unicodedata.normalize("NFC", key): row for key, row in _rows(cache)} | dict(_rows(cache))
    cached: dict[str, int] = {}
    failed: dict[str, str] = {}
    others = []
    for name in names:
        row = row_of.get(name, row_of.get(unicodedata.normalize("NFC", name)))
        if row is not None:
            cached[name] = row
        elif name in cache.failures:
            failed[name] = f"gave no features when the cache was made: {cache.failures[name]}"
        elif "://" in name or os.path.isfile(name):
            others.append(name)
        else:
            raise _unknown_name(name, cache)
    return cached, failed, others


def _unknown_name(name: str, cache: FeatureCache) -> BottleneckError:
    """Error for a name that is neither key nor file, with the keys that may have been meant."""
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
    """Yield each file with its features (D,), or with the reason why it has none.

    A file with the same bytes as an image of the cache takes that row. Only others need the network.
    """
    stored = cache.features(node)
    known = {digest: row for row, digest in enumerate(cache.images.digests())}
    new: dict[bytes | None, np.ndarray] = {}
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
        else:  # a copy of an earlier file, whose batch may still be waiting
            copies.append(item)
    yield from ((image.key, new[image.digest]) for image in copies)


def _source_row(path: str, cache: FeatureCache, row_of: dict[str, int]) -> int:
    """Row of the image file `path` if it lies in the cache's source, else NONE."""
    folder, file = os.path.split(os.path.abspath(path))
    inside = os.path.relpath(os.path.realpath(folder), os.path.realpath(cache.source_root))
    return row_of.get(Path(inside, file).as_posix(), NONE)
