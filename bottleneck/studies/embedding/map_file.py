"""The samples of a cache as a Parquet file that embedding viewers open: positions, neighbours, labels.

    x, y            t-SNE in 0 … 1, of fewer than 8 samples PCA
    pca_x, pca_y    the first two principal components in 0 … 1
    neighbors       {ids, distances}: rows of this file, the nearest first; distance is 1 − cosine
    key, image      name of the sample, path of its first image
    split, one column for each target, group, and with a head: predicted, confidence

Shapes: S samples, k neighbours.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.errors import CacheError, Note
from bottleneck.files import replacing, require_file_name
from bottleneck.heads.artifact import HeadArtifact, load_head
from bottleneck.models.classifier import mean_scores
from bottleneck.models.scoring import cached_inputs, has_mirrors, require_fitted_on
from bottleneck.names import BOTTLENECK
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import ArrayRows, Target
from bottleneck.store.exchange import import_pyarrow, target_columns
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.embedding.plane import PCA_NAME, TSNE_NAME, plane_of
from bottleneck.studies.similar.neighbours import nearest

NEIGHBOURS = 10
TAKEN = {"x", "y", "pca_x", "pca_y", "neighbors", "key", "image", "split", "group", "predicted", "confidence"}


@dataclass(frozen=True)
class MapFile:
    """The written file. node : whose features were used. columns : their names."""

    path: str
    node: str
    samples: int
    columns: list[str]
    notes: list[Note] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of `bottleneck export --format map --json`."""
        return {**vars(self), "format": "map", "notes": [note.to_json() for note in self.notes]}


def export_map(
    cache: str | os.PathLike[str],
    *,
    output: str | Path | None = None,
    head: str | os.PathLike[str] | None = None,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> MapFile:
    """Write the samples of a cache with their positions on a plane to a Parquet file.

    Parameters
    ----------
    cache : path of a feature cache
    output : path; by default the cache's with the suffix .map.parquet
    head : head file that was fitted on this cache, whose node is used and whose predictions are written
    seed : of the positions

    Raises
    ------
    CacheError
        The cache has no samples or no vectors, or pyarrow is not installed.
    FingerprintError
        The head was fitted on other features.
    """
    pyarrow, parquet = import_pyarrow(), import_pyarrow("pyarrow.parquet")
    path = Path(output) if output else Path(cache).with_suffix(".map.parquet")
    require_file_name(path)
    with FeatureCache(cache) as opened:
        samples = opened.samples
        samples.require_finished(str(opened.path))
        if not len(samples):
            raise CacheError(f"{opened.path} has no samples.", "Name the main file of the cache.")
        artifact = None if head is None else load_head(head)
        if artifact is not None:
            require_fitted_on(artifact, opened)
        vectors = opened.vector_names
        node = BOTTLENECK if BOTTLENECK in vectors else next(iter(vectors), BOTTLENECK)
        node = node if artifact is None else artifact.node
        rows = opened.sample_rows(node)
        plane = plane_of(rows, np.arange(len(samples)), seed, reporter)
        columns: dict[str, Any] = {}
        for prefix, name in (("", TSNE_NAME), ("pca_", PCA_NAME)):
            xy = plane.positions.get(name, plane.positions[PCA_NAME])
            columns |= {f"{prefix}x": xy[:, 0], f"{prefix}y": xy[:, 1]}
        columns["neighbors"] = _neighbours(pyarrow, plane.components, reporter)
        columns["key"] = pyarrow.array(_texts(samples.key))
        columns["image"] = pyarrow.array(_texts(opened.images.key[samples.image[:, 0]]))
        columns["split"] = pyarrow.array(_texts(samples.split))
        if samples.group is not None:
            columns["group"] = pyarrow.array(_texts(samples.group))
        names = target_columns(samples.targets, TAKEN)
        for name, target in samples.targets.items():
            columns[names[name]] = pyarrow.array(_labels(target))
        if artifact is not None:
            columns |= {key: pyarrow.array(value) for key, value in _predicted(artifact, opened).items()}
    table = pyarrow.table(columns)
    with replacing(path) as fresh:
        parquet.write_table(table, fresh)
    return MapFile(str(path), node, len(samples), list(columns), [*samples.part_notes(), *plane.notes])


def _neighbours(pyarrow: Any, x: np.ndarray, reporter: Reporter) -> Any:
    """Return for each of S rows {ids: k rows of the table, distances: 1 − cosine}, as an Arrow array."""
    rows = ArrayRows(x)
    with reporter.step("Comparing", total=len(x) ** 2, unit="pairs") as advance:
        index, cosine = nearest(rows, rows, NEIGHBOURS, np.arange(len(x)), advance)
    exists = index >= 0
    distance = 1 - np.where(exists, cosine, 0)
    records = [
        {"ids": ids[found].tolist(), "distances": far[found].tolist()}
        for ids, far, found in zip(index, distance, exists, strict=True)
    ]
    kind = pyarrow.struct(
        [("ids", pyarrow.list_(pyarrow.int64())), ("distances", pyarrow.list_(pyarrow.float64()))]
    )
    return pyarrow.array(records, kind)


def _texts(values: np.ndarray) -> list[str]:
    """Return texts that UTF-8 can hold: bytes of a file name in no encoding become escapes."""
    return [str(value).encode("utf-8", "backslashreplace").decode() for value in values]


def _labels(target: Target) -> list[Any]:
    """Return the label of each sample: a class name, several joined by |, or a number; None without one."""
    labelled = target.labelled.tolist()
    if target.kind == "regression":
        return [float(v) if known else None for v, known in zip(target.values, labelled, strict=True)]
    names = _texts(np.array(target.class_names, object))
    if target.kind == "class":
        return [names[v] if known else None for v, known in zip(target.values, labelled, strict=True)]
    return [
        "|".join(names[k] for k in np.flatnonzero(v == 1)) if known else None
        for v, known in zip(target.values, labelled, strict=True)
    ]


def _predicted(head: HeadArtifact, cache: FeatureCache) -> dict[str, list[Any]]:
    """Return what the head predicts for all samples, those that it learnt from too. A head that averages an
    image and its mirror image does so where the cache has mirrored views.
    """
    flip = bool(head.settings.get("flip")) and has_mirrors(cache, head.node)
    blocks = cached_inputs(cache, head.node, np.arange(len(cache.samples)), flip)
    scores = np.concatenate([mean_scores(head, block) for block in blocks])
    if head.target_kind == "regression":
        return {"predicted": scores.astype(float).tolist()}
    names = _texts(np.array(head.class_names, object))
    if head.target_kind == "class":
        codes = scores.argmax(axis=1)
        confidence = scores.max(axis=1).astype(float).tolist()
        return {"predicted": [names[k] for k in codes], "confidence": confidence}
    return {"predicted": ["|".join(names[k] for k in np.flatnonzero(row > 0.5)) for row in scores]}
