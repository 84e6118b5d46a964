"""Open the images that a cache was made from.

Shapes: I images, S samples.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from bottleneck.data.read_source import read_source
from bottleneck.data.source import Source
from bottleneck.data.storage import Files, LocalFiles, RemoteFiles
from bottleneck.data.untrusted import require_trusted_keys, require_trusted_root
from bottleneck.errors import CacheError, counted, verb
from bottleneck.remote.filesystem import open_url
from bottleneck.remote.retries import Retrier
from bottleneck.store.reader import FeatureCache


def source_of(cache: FeatureCache) -> Source:
    """Return the source that a cache was made from, with the cache's images, samples, labels and splits.

    Images that failed are included, so that their failures stay listed. CacheError if the cache has no rows,
    or names images where a stranger's cache must not reach (`data.untrusted`).
    """
    cache.require_rows()
    require_trusted_root(cache.source_root, cache.path)
    cached = cache.images.key
    keys = np.array(sorted({*cached, *cache.failures}), dtype=object)
    index_of = {key: i for i, key in enumerate(keys)}
    indices = np.array([index_of[key] for key in cached], dtype=np.int64)
    require_trusted_keys(keys, cache.source_root, cache.path)
    samples = replace(cache.samples, image=indices[cache.samples.image])
    retrier = Retrier()
    files = _files(cache.source_root, cached[0], retrier)
    return Source(
        cache.source_root, tuple(keys), samples, 0, {}, files, location=cache.source, retrier=retrier
    )


def require_images(source: Source, rows: np.ndarray | slice, why: str, cache: Path) -> None:
    """Raise CacheError where images of the samples `rows` of `source` no longer exist.

    why : what they are needed for, the beginning of the message. cache : the cache that was made from them.
    """
    needed = [source.images[i] for i in np.unique(source.samples.image[rows])]
    missing = source.files.missing([key for key in needed if "://" not in key])
    if missing:
        key, reason = next(iter(missing.items()))
        raise CacheError(
            f"{why}, but {len(missing)} of {counted(len(needed), 'image')} of {cache} "
            f"{verb(len(missing))} gone: {key} in {source.root} ({reason}).",
            "Put the images back, or extract again from where they are.",
        )


def _files(root: str, key: str, retrier: Retrier) -> Files:
    """Return where images are read; a source of shards, the only one without `key`, is listed again."""
    if "://" in root or "::" in root:
        filesystem, folder = open_url(root)
        files: Files = RemoteFiles(filesystem, folder, root, retrier=retrier)
    else:
        files = LocalFiles(root)
    if "://" in key or not files.missing([key]):
        return files
    return read_source(root).files if Path(root).exists() or "://" in root else files
