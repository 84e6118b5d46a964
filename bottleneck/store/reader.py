"""Read a feature cache: a finished file with its companions, or the committed rows of an unfinished run.

Shapes: I images, S samples, M images per sample, D features, V views, P covariates.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np

from bottleneck.errors import CacheError, counted
from bottleneck.names import BOTTLENECK, EXACT, SPLITS, nodes_in
from bottleneck.remote.path import RemotePath, path_of
from bottleneck.samples import RowReader, SampleTable, Target
from bottleneck.store.cachefile import CacheFile, find_companions
from bottleneck.store.exchange import CacheDataset, blocks_of_table, import_pyarrow
from bottleneck.store.layout import companion_path, parts_folder
from bottleneck.store.parts import read_log
from bottleneck.store.rows import Catalog, FeatureRows, SampleMaps, SampleRows, SideBySide
from bottleneck.store.spec import NodeSpec, stored_name, vector_fingerprint
from bottleneck.store.tables import ImageTable, encode, no_samples, sample_flags

if TYPE_CHECKING:
    import pyarrow

VIEWS = 4  # proposed by a message if no node has views


class FeatureCache:
    """A feature cache opened for reading; a context manager.

    A finished file is read without the parts of a later run beside it. If only the parts folder exists, or if
    the folder itself is named, the rows committed so far are read. A file that a writer replaces meanwhile is
    still read as it was.

    Parameters
    ----------
    path : str or path-like
        NAME.h5, or NAME.h5.parts. Both may lie behind a URL: they are read in ranges.

    Attributes
    ----------
    path : Path
    spec : CacheSpec
    fingerprint, source_root, source, created_with : str
        `source` is what was extracted, the folder or file; the keys are relative to `source_root`.
    nodes : dict of str to NodeSpec
        By name, NODE or NODE@POOL; maps in companion files included.
    images : ImageTable of I rows
    failures : dict of key to reason
    finished : bool, False for the committed rows of an unfinished run

    Raises
    ------
    CacheError
        There is no such cache, or it is damaged, hostile or of another version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path_of(path)
        self._samples: SampleTable | CacheError
        self._catalog = Catalog()
        self._broken: dict[str, CacheError] = {}
        folder = parts_folder(self.path)
        try:
            if isinstance(self.path, RemotePath) and self.path.is_file():  # saves requests
                self._open_finished()
            elif self.path.is_dir():
                self._open_parts(self.path)
            elif not self.path.exists() and folder.is_dir():
                self._open_unfinished(folder)
            else:
                self._open_finished()
        except BaseException:
            self.close()
            raise

    def _open_finished(self) -> None:
        self.finished = True
        main = CacheFile(self.path)
        self._catalog.pool.add(main)
        self._catalog.add_rows(main)
        self._adopt(main)
        self.nodes = dict(main.nodes)
        if main.map_name is None:
            companions, self._broken = find_companions(self.path, main.origin.spec)
            for name, companion in companions.items():
                self._catalog.pool.add(companion)
                self._catalog.add_rows(companion)
                self.nodes[name] = companion.nodes[name]

    def _open_unfinished(self, folder: Path) -> None:
        try:
            self._open_parts(folder)
        except CacheError:
            if not self.path.exists():
                raise
            self._catalog.close()  # the run has finished meanwhile
            self._catalog = Catalog()
            self._open_finished()

    def _open_parts(self, folder: Path) -> None:
        log = read_log(folder)
        if log is None:
            raise CacheError(
                f"{folder} holds no committed rows yet.",
                "Run the `bottleneck extract` that began it again.",
            )
        self.finished = log.table is not None
        self.nodes = {node.name: node for node in log.nodes}
        entries = [entry for entry in log.parts if (folder / entry.name).exists()]
        names = []
        for entry in entries:
            part = self._catalog.open_part(folder, entry, thorough=False)
            self._catalog.add_rows(part)
            if log.table is None:
                self._catalog.add_keys(part)
                names += [part.images.name, part.image_group("taken").name]
                self._adopt(part)
        if log.table is not None:
            self._adopt(self._catalog.open_part(folder, log.table, thorough=False))
            return
        if not entries:
            raise CacheError(f"{folder} holds no committed rows any more.", "Run `bottleneck extract` again.")
        datasets = tuple(dataset for node in self.nodes.values() for dataset in node.datasets)
        self._catalog.settle()
        records = self._catalog.records
        at = records.positions()
        images = ImageTable(np.concatenate(names)[at], records.digest[at], records.stat[at])
        self.images = images.take(self._catalog.has(images.digest, datasets))
        self._samples = replace(no_samples(), finished=False)
        self.failures = {key: failure.reason for key, failure in self._catalog.failures.items()}

    def _adopt(self, file: CacheFile) -> None:
        """Take the attributes and tables of a file as the cache's."""
        self.spec, self.fingerprint = file.spec, file.spec.fingerprint
        self.source_root, self.source = file.origin.source_root, file.origin.source
        self.created_with = file.created_with
        self.images = file.images
        try:
            self._samples = file.samples
        except CacheError as error:  # `extract` can still use the rows
            self._samples = error
        self.failures = {failure.key: failure.reason for failure in file.failures}

    @property
    def samples(self) -> SampleTable:
        """The S samples; none for a companion or an unfinished run. Raises CacheError if they are damaged."""
        if isinstance(self._samples, CacheError):
            raise self._samples
        return self._samples

    @property
    def engines(self) -> dict[str, tuple[str, ...]]:
        """By node the engines that computed rows of it, sorted; "" stands for rows of an unknown one."""
        return {name: tuple(sorted(self._catalog.engines.get(name, {""}))) for name in self.nodes}

    def require_rows(self) -> None:
        """Raise CacheError, with a reason, if no image has given a row."""
        if not len(self.images):
            first = "".join(f"; {key} {reason}" for key, reason in sorted(self.failures.items())[:1])
            raise CacheError(
                f"{self.path} has no rows: none of {counted(len(self.failures), 'image')} could be "
                f"used{first}.",
                "Repair or replace the images, and extract them again.",
            )

    def stored_name(self, name: str) -> str | None:
        """Return the name under which the node NODE or NODE@POOL is stored; None if it is not."""
        return stored_name(self.nodes, name)

    def node(self, name: str) -> NodeSpec:
        """Return the node of that name, or of which it is another name in the network.

        Raises CacheError, which lists the nodes of the cache, if there is none.
        """
        found = self.stored_name(name)
        if found is None:
            known = ", ".join(sorted(self.nodes)) or "none"
            broken = "".join(f" {error.message}" for error in self._broken.values())
            meant = " or ".join(repr(node.name) for node in self.nodes.values() if node.may_be_meant(name))
            raise CacheError(
                f"{self.path} has no features of node {name!r}; it has: {known}.{broken}",
                f"Did you mean {meant}?" if meant else self._add_with(name),
            )
        return self.nodes[found]

    def vectors(self, name: str) -> tuple[NodeSpec, ...]:
        """Return the nodes that a head on `name` takes: one, or for A+B several side by side.

        Raises
        ------
        CacheError
            There is no such node, it is a map, or a node is named twice.
        """
        nodes = tuple(map(self.node, (name,) if name in self.nodes else nodes_in(name)))
        for number, node in enumerate(nodes):
            if node.is_map:
                raise CacheError(
                    f"Node {node.name!r} is a map of shape {node.shape}; samples' rows need a vector.",
                    self._add_with(node.node),
                )
            if node in nodes[:number]:
                raise CacheError(f"{name!r} names node {node.name!r} twice.", "Name each node once.")
        return nodes

    def vector_fingerprint(self, name: str) -> str:
        """Return the fingerprint of the rows that a head on `name` takes; errors as from `vectors`."""
        return vector_fingerprint(self.vectors(name), self.spec)

    def precisions_of(self, name: str) -> dict[str, str]:
        """Return by node the precision of the rows that a head on `name` takes; errors as from `vectors`."""
        return {node.name: node.precision for node in self.vectors(name)}

    def features(self, name: str) -> FeatureRows:
        """Return the rows of a node, (I, D) or (I, C, H, W) …, in the order of `images`.

        Raises CacheError if there is no such node, or if a companion lacks rows of some images.
        """
        return self._rows(self.node(name), views=False)

    def has_all_rows(self, name: str) -> bool:
        """Return whether the node has the rows of all images, which a map lacks after images were added."""
        return not len(self._catalog.rows(self.node(name), self.images.digest, views=False).absent)

    def views(self, name: str) -> FeatureRows:
        """Return the rows of a node's augmented views, (I, V, …)."""
        node = self.node(name)
        if node.views is None:
            count = next((other.views["count"] for other in self.nodes.values() if other.views), VIEWS)
            raise CacheError(
                f"{self.path} has no views of node {name!r}.",
                self._add_with(name, f" --views {count}"),
            )
        return self._rows(node, views=True)

    def sample_rows(self, name: str, rows: np.ndarray | None = None, views: bool = False) -> SampleRows:
        """Return the rows of samples for a head: (S, M·D + P), with views (S, V, M·D + P).

        Parameters
        ----------
        name : str
            A vector node, or A+B for several side by side (`vectors`); D is then the sum of their sizes.
        rows : indices or mask of samples; all by default
        """
        nodes = self.vectors(name)
        parts = [self.views(node.name) if views else self.features(node.name) for node in nodes]
        joined = parts[0] if len(parts) == 1 else SideBySide(parts)
        return SampleRows(joined, self.samples, rows, [node.name for node in nodes])

    def target(self, name: str) -> Target:
        """Return the target `name`. Raises CacheError, which lists the targets, if there is none."""
        if name not in self.samples.targets:
            known = ", ".join(self.samples.targets) or "none"
            raise CacheError(f"{self.path} has no target {name!r}; it has: {known}.")
        return self.samples.targets[name]

    def select(self, split: str | None, target: str | None) -> tuple[np.ndarray, int]:
        """Return the samples (n,) of a split, None for all, that have a label of `target`, None for any.

        The second value is the number of samples of the split without a label.

        Raises CacheError where a split is named that has none of these samples.
        """
        if split is not None and split not in SPLITS:
            raise CacheError(f"The split is {split!r}; expected one of {', '.join(SPLITS)}, or None for all.")
        chosen = np.full(len(self.samples), True) if split is None else self.samples.split == split
        labelled = chosen if target is None else chosen & self.target(target).labelled
        if split is not None and not labelled.any():
            counts = {name: int((self.samples.split == name).sum()) for name in SPLITS}
            which = f"{split} sample" if target is None else f"{split} sample with a label of {target!r}"
            shown = ", ".join(f"{count:,} {name}" for name, count in counts.items())
            raise CacheError(f"{self.path} has no {which}; its samples are {shown}.", "Name another split.")
        return np.flatnonzero(labelled), int(chosen.sum() - labelled.sum())

    def to_numpy(
        self, node: str = BOTTLENECK, split: str | None = None, target: str | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return X and y of samples, as scikit-learn takes them; y is None without a target.

        Parameters
        ----------
        node : a vector node
        split : "train", "val" or "test"; None takes all samples
        target : samples without a label of it are left out

        Returns
        -------
        X : (n, M·D + P) in the stored type; float32 with covariates
        y : (n,) class names or float64 numbers; (n, L) uint8 of a multi-label target
        """
        rows, _ = self.select(split, target)
        X = self.sample_rows(node, rows).read(0, len(rows))
        if target is None:
            return X, None
        labels = self.target(target).take(rows)
        if labels.kind != "class":
            return X, labels.values
        return X, np.array(labels.class_names, dtype=str)[labels.values]

    def to_arrow(self, nodes: Sequence[str] | None = None, split: str | None = None) -> pyarrow.Table:
        """Return a table with one row a sample, which polars and `datasets.Dataset` take without a copy.

        Columns: key, image, split, group, the labels by name, covariates, and features/NODE as a list of
        fixed size of float32. Without samples, as in a run that goes on, one row an image.

        Parameters
        ----------
        nodes : all vector nodes by default
        split : "train", "val" or "test"; None takes all samples

        Raises CacheError where pyarrow is not installed.
        """
        names = self.vector_names if nodes is None else nodes
        features = {name: self.features(name) for name in names}
        rows = None if split is None else self.select(split, None)[0]
        blocks = blocks_of_table(self.images.key, self.samples, features, rows)
        return import_pyarrow().concat_tables(list(blocks))

    def torch_dataset(
        self, node: str = BOTTLENECK, split: str | None = None, target: str | None = None
    ) -> CacheDataset:
        """Return samples with random access for `torch.utils.data.DataLoader`, workers included.

        Parameters
        ----------
        node : a vector or a map
        split : "train", "val" or "test"; None takes all samples
        target : None gives features alone
        """
        if not self._is_map(node):
            self.vectors(node)
        rows, left_out = self.select(split, target)
        chosen = None if target is None else self.target(target).take(rows)
        opener = partial(_open_rows, self.path, node, self.identity)
        return CacheDataset(opener, self.samples.key[rows], rows, chosen, left_out)

    def _is_map(self, node: str) -> bool:
        return node in self.nodes and self.nodes[node].is_map

    @property
    def identity(self) -> str:
        """A sha256 of what another state of the file would change: recipe, samples and images."""
        state = hashlib.sha256(self.fingerprint.encode())
        for array in (encode(self.samples.key), self.samples.image, self.images.digest):
            state.update(np.ascontiguousarray(array).tobytes())
        return state.hexdigest()

    @property
    def vector_names(self) -> list[str]:
        """Names of the nodes that are vectors."""
        return [name for name, node in self.nodes.items() if not node.is_map]

    def _rows(self, node: NodeSpec, views: bool) -> FeatureRows:
        rows = self._catalog.rows(node, self.images.digest, views)
        if len(rows.absent):
            where = companion_path(self.path, node) if node.is_map else self.path
            raise CacheError(
                f"{where} lacks the rows of {len(rows.absent)} of {counted(len(rows), 'image')}, "
                f"{self.images.key[rows.absent[0]]!r} first.",
                self._add_with(node.name),
            )
        return rows

    @property
    def source_words(self) -> str:
        """The source as a command names it, with the flags that give the samples their labels and splits."""
        known = no_samples() if isinstance(self._samples, CacheError) else self._samples
        targets = [(each.name, each.kind, each.class_names) for each in known.targets.values()]
        return quote(self.source) + sample_flags(known.columns, known.set_aside, targets)

    def extract_command(self, flags: str = "") -> str:
        """Return the command that extracts the source of the cache into it again, with `flags`."""
        return f"bottleneck extract {self.source_words} -o {quote(str(self.path))} {flags}".rstrip()

    def _add_with(self, node: str, flags: str = "") -> str:
        command = self.extract_command(f"--node {quote(node)}{flags}")
        return f"Add them with `{command}`."

    def close(self) -> None:
        """Close every file."""
        self._catalog.close()

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _open_rows(path: Path, node: str, identity: str) -> RowReader:
    """Open the cache at `path` and return the rows of its samples, while they are those of `identity`."""
    cache = FeatureCache(path)
    if cache.identity != identity:
        cache.close()
        raise CacheError(
            f"{path} has been written anew since this dataset was made.",
            "Open the cache again and make a new dataset.",
        )
    if cache._is_map(node):
        return SampleMaps(cache.features(node), cache.samples)
    return cache.sample_rows(node)


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a description of the cache at `path` as one JSON object, which `bottleneck cache info` shows.

    Returns
    -------
    dict with cache, finished, backbone, preprocess, decoding, fingerprint, source_root, source, created_with,
    images, samples, images_per_sample, splits {name: samples}, set_aside {val, test, seed},
    shards {of, numbers, plan} or None,
    nodes {name: {shape, dtype, precision, pool, layout, map, views, recipe, calibration,
    decoding_agreement}},
    targets {name: {kind, classes, class_names, labelled}}, covariates,
    failures {key: reason}
    """
    with FeatureCache(path) as cache:
        samples = cache.samples
        counts = {split: int((samples.split == split).sum()) for split in SPLITS}
        return {
            "cache": str(cache.path),
            "finished": cache.finished,
            "backbone": cache.spec.backbone,
            "preprocess": cache.spec.preprocess,
            "decoding": cache.spec.preprocess.get("decoding", EXACT),
            "fingerprint": cache.fingerprint,
            "source_root": cache.source_root,
            "source": cache.source,
            "created_with": cache.created_with,
            "images": len(cache.images),
            "samples": len(samples),
            "images_per_sample": samples.image.shape[1],
            "splits": {split: count for split, count in counts.items() if count},
            "set_aside": dict(samples.set_aside),
            "shards": None if samples.shard is None else vars(samples.shard),
            "nodes": {
                name: {
                    "shape": list(node.shape),
                    "dtype": node.dtype,
                    "precision": node.precision,
                    "engines": cache.engines[name],
                    "pool": node.pool,
                    "layout": node.layout,
                    "map": node.is_map,
                    "views": 0 if node.views is None else node.views["count"],
                    "recipe": node.views,
                    "calibration": node.calibration,
                    "decoding_agreement": node.decoding_agreement,
                }
                for name, node in cache.nodes.items()
            },
            "targets": {
                name: {
                    "kind": target.kind,
                    "classes": len(target.class_names),
                    "class_names": list(target.class_names),
                    "labelled": int(target.labelled.sum()),
                }
                for name, target in samples.targets.items()
            },
            "covariates": list(samples.covariate_names),
            "failures": dict(cache.failures),
        }
