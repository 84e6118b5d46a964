"""Images that a network takes for alike, from the features that a cache has of them.

Shapes: I images of the cache, Q queries, k neighbours.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from bottleneck.errors import BottleneckError, CacheError
from bottleneck.progress import Progress, silent
from bottleneck.request import ExtractConfig
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.neighbours import NONE, look_alikes, nearest
from bottleneck.studies.queries import Queries, every_image, named_images
from bottleneck.trunk import EngineConfig

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
    progress: Progress = silent,
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
        found = _compared(opened, name, queries, count, threshold, progress)
    seconds = time.perf_counter() - started - queries.startup_seconds
    result = replace(found, cache=str(cache), seconds=seconds)
    if output is not None:
        _write(result, Path(output))
    return result


def _compared(
    cache: FeatureCache, node: str, queries: Queries, count: int, threshold: float | None, progress: Progress
) -> Similar:
    """The neighbours of the queries, and the groups of look-alikes where a threshold is given."""
    rows = cache.features(node)
    with progress("Comparing", total=len(queries.images) * len(rows), unit="pairs") as advance:
        index, cosine = nearest(rows, queries.rows, count, queries.own, advance)
    group, pairs = None, 0
    if threshold is not None:
        with progress("Grouping", unit="pairs") as advance:
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
