"""Images that look alike to a network, by the features that a cache has of them.

Shapes: I images of the cache, Q queries, k neighbours.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.backbones.node_names import stored_nodes
from bottleneck.backbones.recipe import LoadOptions
from bottleneck.data.table_file import csv_lines
from bottleneck.errors import BottleneckError, CacheError, Note
from bottleneck.extraction.config import EngineConfig, ExtractConfig
from bottleneck.files import whole_file
from bottleneck.names import BOTTLENECK
from bottleneck.progress import SILENT, Reporter
from bottleneck.records import config_from
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.similar.neighbours import (
    NONE,
    Queries,
    every_image,
    look_alikes,
    named_images,
    nearest,
)
from bottleneck.studies.study_config import SimilarConfig


@dataclass(frozen=True)
class Similar:
    """Result of `similar`.

    Parameters
    ----------
    cache, node : str
    keys : (I,) object array, the cache's images
    images : Q queries, by key, or by path as it was given
    index : (Q, k) int64 rows of the cache, the nearest first; −1 where there are no more
    cosine : (Q, k) float32
    group : (I,) int64, the first row of each image's group of look-alikes; None without a threshold
    pairs : number of pairs of images with a cosine of the threshold or more
    failed : reason by query that could not be used
    seconds : wall time without loading the network
    engines : that computed images that are not in the cache, each {"engine", "precision", "nodes"}
    precisions : of the features, by node
    notes : what was decided for the user
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
    engines: list[dict[str, Any]] = field(default_factory=list)
    precisions: dict[str, str] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()

    def neighbours(self) -> Iterator[tuple[str, list[tuple[str, float]]]]:
        """Yield each query with its neighbours (key, cosine)."""
        for image, index, cosine in zip(self.images, self.index, self.cosine, strict=True):
            exists = index != NONE
            yield image, list(zip(self.keys[index[exists]], cosine[exists].tolist(), strict=True))

    def groups(self) -> list[list[str]]:
        """Return the keys of each group of two or more, the largest group first."""
        if self.group is None:
            return []
        order = np.argsort(self.group, kind="stable")
        starts = np.flatnonzero(np.diff(self.group[order], prepend=-1))
        groups = [rows for rows in np.split(order, starts[1:]) if len(rows) > 1]
        return [self.keys[rows].tolist() for rows in sorted(groups, key=len, reverse=True)]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of `bottleneck similar --json`."""
        return {
            "cache": self.cache,
            "node": self.node,
            "neighbours": list(self._neighbour_records()),
            "groups": self.groups(),
            "pairs": self.pairs,
            "failed": [{"image": image, "error": reason} for image, reason in self.failed.items()],
            "seconds": self.seconds,
            "engines": self.engines,
            "precisions": self.precisions,
            "notes": [note.to_json() for note in self.notes],
        }

    def write(self, path: str | Path, raw: bool = False) -> None:
        """Write a .csv or .jsonl file: neighbours by query; groups by image if there are no queries.

        raw : write texts to .csv as they are, also those that a spreadsheet would execute (`data.table_file`)
        """
        path = Path(path)
        with whole_file(path) as binary, TextIOWrapper(binary, encoding="utf-8", newline="") as file:
            if path.suffix.lower() == ".jsonl":
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in self._records())
            else:
                file.writelines(csv_lines(self._rows(), raw))

    def _rows(self) -> Iterator[list[object]]:
        """Yield the rows of the CSV file, its header first."""
        columns = ["image", *(["rank", "neighbour", "cosine"] if self.images else [])]
        yield [*columns, *([] if self.group is None else ["group"])]
        for record in self._records():
            group = [] if self.group is None else [record["group"]]
            if not self.images:
                yield [record["image"], *group]
            for rank, neighbour in enumerate(record.get("neighbours", ()), 1):
                cells = [record["image"], rank, neighbour["image"], f"{neighbour['cosine']:.6f}"]
                yield [*cells, *group]

    def _records(self) -> Iterator[dict[str, Any]]:
        """Yield one record per query, or one per image of the cache where there are only groups."""
        names: dict[str, str] = {}  # of each image's group
        if self.group is not None:
            names = dict(zip(self.keys, self.keys[self.group], strict=True))
        if not self.images:
            yield from ({"image": key, "group": name} for key, name in names.items())
        for record in self._neighbour_records():
            yield record | ({} if self.group is None else {"group": names.get(record["image"])})

    def _neighbour_records(self) -> Iterator[dict[str, Any]]:
        for image, neighbours in self.neighbours():
            listed = [{"image": key, "cosine": cosine} for key, cosine in neighbours]
            yield {"image": image, "neighbours": listed}


def similar(
    cache: str | os.PathLike[str],
    images: Sequence[str] = (),
    *,
    all_images: bool = SimilarConfig.all_images,
    node: str | None = SimilarConfig.node,
    count: int = SimilarConfig.count,
    threshold: float | None = SimilarConfig.threshold,
    output: str | Path | None = SimilarConfig.output,
    raw: bool = SimilarConfig.raw,
    weights: str | None = LoadOptions.weights,
    trust_code: bool = LoadOptions.trust_code,
    engine: str = EngineConfig.engine,
    precision: str = EngineConfig.precision,
    device: str = EngineConfig.device,
    batch_size: int | None = EngineConfig.batch_size,
    workers: int | None = EngineConfig.workers,
    force: bool = EngineConfig.force,
    reporter: Reporter = SILENT,
) -> Similar:
    """Find the images of a cache that are nearest by the cosine of their features.

    Parameters
    ----------
    cache : path of a feature cache
    images : keys of the cache, or paths or URLs of other images
    all_images : find the neighbours of every image of the cache
    node : a vector node of the cache; `bottleneck` if the cache has it, else its first
    count : neighbours of each image
    threshold : also group images that are linked by cosines of this or more
    output : .csv or .jsonl file for the result
    raw : write texts to .csv as they are, also those that a spreadsheet would execute
    weights, trust_code, engine, precision, device, batch_size, workers, force
        As in `extract`, for images whose features have to be computed.

    Raises
    ------
    CacheError
        No such cache or node.
    BottleneckError
        No query can be used, or there is neither a query nor a threshold.
    """
    config = config_from(SimilarConfig, locals())
    if not (images or all_images or threshold is not None) or (images and all_images):
        raise BottleneckError("Name images, or ask for all of them, or give a threshold.")
    with FeatureCache(cache) as opened:
        names, notes = stored_nodes(opened, [] if node is None else [node])
        name = _vector_node(opened, names[0] if names else None)
        started = time.perf_counter()
        if all_images:
            queries = every_image(opened, name)
        else:
            queries = named_images(opened, images, config_from(ExtractConfig, locals(), nodes=(name,)))
        result = _compared(opened, name, queries, config, reporter)
        notes = [*opened.samples.part_notes(), *notes, *queries.notes]
    spent = time.perf_counter() - started - queries.startup_seconds
    result = replace(result, cache=str(cache), notes=tuple(notes), seconds=spent)
    if output is not None:
        result.write(output, raw)
    return result


def _compared(
    cache: FeatureCache, node: str, queries: Queries, config: SimilarConfig, reporter: Reporter
) -> Similar:
    """Return the neighbours of the queries and, with a threshold, groups of images."""
    rows, group, pairs = cache.features(node), None, 0
    with reporter.step("Comparing", total=len(queries.images) * len(rows), unit="pairs") as advance:
        index, cosine = nearest(rows, queries.rows, config.count, queries.cached_row, advance)
    if config.threshold is not None:
        with reporter.step("Grouping", unit="pairs") as advance:
            group, pairs = look_alikes(rows, config.threshold, advance)
    keys = cache.images.key
    return Similar(
        str(cache.path),
        node,
        keys,
        queries.images,
        index,
        cosine,
        group,
        pairs,
        queries.failed,
        engines=list(queries.engines),
        precisions=cache.precisions_of(node),
    )


def _vector_node(cache: FeatureCache, name: str | None) -> str:
    """Return `name` if it is a vector node; without a name the bottleneck or the first vector node."""
    vectors = cache.vector_names
    if name is None and vectors:
        return BOTTLENECK if BOTTLENECK in vectors else vectors[0]
    if name is not None and not cache.node(name).is_map:
        return cache.node(name).name
    raise CacheError(
        f"Cosines need a vector for each image; {cache.path} has maps at {name or ', '.join(cache.nodes)} "
        f"and vectors at {', '.join(vectors) or 'no node'}.",
        f"Add one: {cache.extract_command('--node bottleneck')}",
    )
