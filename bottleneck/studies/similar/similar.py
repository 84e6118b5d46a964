"""Images that a network takes for alike, from the features that a cache has of them.

Shapes: I images of the cache, Q queries, k neighbours.

Images to look for, as features: those of a cache by key, any other computed by the cache's own recipe.

Shapes: I images of the cache, Q queries, D features.
"""

from __future__ import annotations

import csv
import json
import os
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from bottleneck.data.loader import LoadedImage
from bottleneck.data.source import image_files
from bottleneck.errors import BottleneckError, CacheError
from bottleneck.extraction.config import EngineConfig, ExtractConfig
from bottleneck.extraction.pipeline import Batch, Trunk
from bottleneck.extraction.prepare import open_trunk
from bottleneck.extraction.settings import resolve
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import ArrayRows, RowReader
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.similar.neighbours import NONE, look_alikes, nearest

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
        trunk = open_trunk(resolve(config, cache.path, cache.spec, cache.nodes))
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


FORMATS = (".csv", ".jsonl")


@dataclass(frozen=True)
class Similar:
    """What was found.

    Parameters
    ----------
    cache, node : str
    keys : (I,) object array, the cache's images
    images : sequence of Q queries, by key, or by path as it was given
    index : (Q, k) int64 rows of the cache, the nearest first; −1 where there are no more
    cosine : (Q, k) float32
    group : (I,) int64, the first row of each image's group of look-alikes; None where none were asked for
    pairs : look-alikes that reach the threshold
    failed : reason by query that could not be used
    seconds : wall time without loading the network
    """

    cache: str
    node: str
    keys: np.ndarray
    images: Sequence[str]
    index: np.ndarray
    cosine: np.ndarray
    group: np.ndarray | None = None
    pairs: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def neighbours(self) -> Iterator[tuple[str, list[tuple[str, float]]]]:
        """Each query with its neighbours (key, cosine)."""
        for image, index, cosine in zip(self.images, self.index, self.cosine, strict=True):
            there = index != NONE
            yield image, list(zip(self.keys[index[there]], cosine[there].tolist(), strict=True))

    def groups(self) -> list[list[str]]:
        """Keys of each group of two or more, the largest group first."""
        if self.group is None:
            return []
        order = np.argsort(self.group, kind="stable")
        starts = np.flatnonzero(np.diff(self.group[order], prepend=-1))
        found = [rows for rows in np.split(order, starts[1:]) if len(rows) > 1]
        return [self.keys[rows].tolist() for rows in sorted(found, key=len, reverse=True)]

    def to_json(self) -> dict[str, Any]:
        """The JSON object of `bottleneck similar --json`."""
        listed = [
            {"image": image, "neighbours": [{"image": key, "cosine": cosine} for key, cosine in found]}
            for image, found in self.neighbours()
        ]
        failed = [{"image": image, "error": reason} for image, reason in self.failed.items()]
        return {
            "cache": self.cache,
            "node": self.node,
            "neighbours": listed,
            "groups": self.groups(),
            "pairs": self.pairs,
            "failed": failed,
            "seconds": self.seconds,
        }


def similar(
    cache: str | os.PathLike,
    images: Sequence[str] = (),
    *,
    all_images: bool = False,
    node: str | None = None,
    count: int = 10,
    threshold: float | None = None,
    output: str | os.PathLike | None = None,
    weights: str | None = None,
    trust_code: bool = False,
    reporter: Reporter = SILENT,
    **options: Any,
) -> Similar:
    """Find the images of a cache that are nearest by the cosine of their features.

    Parameters
    ----------
    cache : path of a feature cache
    images : keys of the cache, or paths or URLs of other images
    all_images : find the neighbours of every image of the cache
    node : a vector node of the cache; `bottleneck` where it has it, else its first
    count : neighbours of each image
    threshold : also group images linked by cosines of this or more
    output : .csv or .jsonl file for what was found
    weights, trust_code : as in `extract`, for images that have to be computed
    options : fields of `EngineConfig`

    Raises
    ------
    CacheError
        No such cache or node.
    BottleneckError
        No query can be used, or nothing was asked.
    """
    if output is not None and Path(output).suffix.lower() not in FORMATS:
        raise BottleneckError(f"The output {output} has another suffix than {' or '.join(FORMATS)}.")
    if not (images or all_images or threshold is not None) or (images and all_images):
        raise BottleneckError("Name images, or ask for all of them, or give a threshold.")
    with FeatureCache(cache) as opened:
        name = _vector_node(opened, node)
        started = time.perf_counter()
        if all_images:
            queries = every_image(opened, name)
        else:
            engine = EngineConfig(**options)
            config = ExtractConfig(nodes=(name,), weights=weights, trust_code=trust_code, engine=engine)
            queries = named_images(opened, images, config)
        found = _compared(opened, name, queries, count, threshold, reporter)
    seconds = time.perf_counter() - started - queries.startup_seconds
    result = replace(found, cache=str(cache), seconds=seconds)
    if output is not None:
        _write(result, Path(output))
    return result


def _compared(
    cache: FeatureCache, node: str, queries: Queries, count: int, threshold: float | None, reporter: Reporter
) -> Similar:
    """The neighbours of the queries, and the groups of look-alikes where a threshold is given."""
    rows = cache.features(node)
    with reporter.step("Comparing", total=len(queries.images) * len(rows), unit="pairs") as advance:
        index, cosine = nearest(rows, queries.rows, count, queries.own, advance)
    group, pairs = None, 0
    if threshold is not None:
        with reporter.step("Grouping", unit="pairs") as advance:
            group, pairs = look_alikes(rows, threshold, advance)
    return Similar(
        cache=str(cache.path),
        node=node,
        keys=cache.images.key,
        images=queries.images,
        index=index,
        cosine=cosine,
        group=group,
        pairs=pairs,
        failed=queries.failed,
    )


def _vector_node(cache: FeatureCache, name: str | None) -> str:
    """The vector node asked for, or the cache's main one."""
    vectors = [node for node, spec in cache.nodes.items() if not spec.is_map]
    if name is None and vectors:
        return "bottleneck" if "bottleneck" in vectors else vectors[0]
    if name is not None and not cache.node(name).is_map:
        return name
    raise CacheError(
        f"Cosines need a vector for each image; {cache.path} has maps at {name or ', '.join(cache.nodes)} "
        f"and vectors at {', '.join(vectors) or 'no node'}.",
        "Add one: "
        f"bottleneck extract {quote(cache.source_root)} -o {quote(str(cache.path))} --node bottleneck",
    )


def _write(result: Similar, path: Path) -> None:
    """Neighbours by query; groups by image where these alone were asked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {} if result.group is None else dict(zip(result.keys, result.keys[result.group], strict=True))
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix.lower() == ".jsonl":
            for record in _records(result, names):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
            return
        writer = csv.writer(file)
        columns = ["image", *(["rank", "neighbour", "cosine"] if len(result.images) else [])]
        writer.writerow(columns + ["group"] * bool(names))
        for record in _records(result, names):
            group = [record["group"]] if names else []
            if not len(result.images):
                writer.writerow([record["image"], *group])
            for rank, found in enumerate(record.get("neighbours", ()), 1):
                writer.writerow([record["image"], rank, found["image"], f"{found['cosine']:.6f}", *group])


def _records(result: Similar, group: dict[str, str]) -> Iterator[dict[str, Any]]:
    """One record per query, or per image of the cache where there are groups alone."""
    if not len(result.images):
        yield from ({"image": key, "group": name} for key, name in group.items())
    for image, found in result.neighbours():
        listed = [{"image": key, "cosine": cosine} for key, cosine in found]
        yield {"image": image, "neighbours": listed} | ({"group": group.get(image)} if group else {})
