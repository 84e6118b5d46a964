"""What a writer finds and keeps up: the finished file, its companions, and the parts of an interrupted run.

Shapes: I images.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bottleneck.errors import CacheError
from bottleneck.files import TEMPORARY, require_space
from bottleneck.samples import SampleTable
from bottleneck.store import consolidate
from bottleneck.store.cachefile import CacheFile, dataset_paths, find_companions
from bottleneck.store.layout import companion_path, parts_folder
from bottleneck.store.parts import LogState, PartEntry, PartsFolder, read_log
from bottleneck.store.rows import Catalog, Record
from bottleneck.store.spec import CacheSpec, NodeSpec, require_equal
from bottleneck.store.tables import (
    Failure,
    ImageTable,
    failure_columns,
    same_columns,
    same_images,
    sample_columns,
)

OTHER_FILE = "Leave those flags out, or give another file with -o."
OTHER_RUN = "Repeat that run with its settings, or delete {} to give it up."
TABLE_BYTES = 512  # of one image in the tables, for the estimate of disk space


class Existing:
    """The state of a cache on disk, as its one writer sees it. The caller holds the lock.

    Attributes
    ----------
    nodes : dict of name to NodeSpec
        What every image of the finished cache will have: the nodes asked for and the main file's own.
    keys : tuple of the keys of the last finished run
    parts : PartsFolder
    """

    def __init__(self, path: Path, spec: CacheSpec, nodes: Sequence[NodeSpec], source_root: str) -> None:
        self._path, self._spec, self._source_root = path, spec, source_root
        self._catalog = Catalog()
        self._main: CacheFile | None = None
        self._companions: dict[str, CacheFile] = {}
        self.parts: PartsFolder | None = None
        try:
            self._open_finished()
            state = self._interrupted()
            self.nodes = self._effective(nodes, state)
            self._open_parts()
        except BaseException:
            self.close()
            raise
        self._name_of = {path: node.name for node in self.nodes.values() for path in dataset_paths(node)}

    def _open_finished(self) -> None:
        _remove_temporaries(self._path)
        if self._path.exists():
            self._main = main = CacheFile(self._path)
            self._catalog.pool.keep(main)
            if main.map_name is not None:
                raise CacheError(
                    f"{self._path} is the map of node {main.map_name!r} of another cache.",
                    "Name the main file, whose name ends before the last '--'.",
                )
            self._require_settings(main.spec, main.source_root, f"The cache {self._path}", OTHER_FILE)
            self._catalog.add_rows(main)
            self._catalog.add_keys(main)
        self.keys = () if self._main is None else tuple(self._main.images.key)
        self._companions, self._broken = find_companions(
            self._path, self._spec.fingerprint, self._source_root
        )
        for companion in self._companions.values():
            self._catalog.pool.keep(companion)
            self._catalog.add_rows(companion)

    def _interrupted(self) -> LogState | None:
        folder = parts_folder(self._path)
        state = read_log(folder)
        if state is not None:
            where = f"The interrupted run in {folder}"
            self._require_settings(state.spec, state.source_root, where, OTHER_RUN.format(folder))
        return state

    def _require_settings(self, spec: CacheSpec, source_root: str, where: str, hint: str) -> None:
        cached = spec.to_json() | {"source_root": source_root}
        asked = self._spec.to_json() | {"source_root": self._source_root}
        require_equal(cached, asked, where, hint)

    def _effective(self, asked: Sequence[NodeSpec], state: LogState | None) -> dict[str, NodeSpec]:
        """The main file's nodes and those asked for, compared with what cache and parts say of them."""
        kept = {} if self._main is None else dict(self._main.nodes)
        cached = kept | {name: file.nodes[name] for name, file in self._companions.items()}
        interrupted = {} if state is None else {node.name: node for node in state.nodes}
        effective = kept
        for node in asked:
            if node.is_map and companion_path(self._path, node).name in self._broken:
                raise self._broken[companion_path(self._path, node).name]
            if node.name in cached:
                where = f"Node {node.name!r} of {self._path}"
                node = _agreed(cached[node.name], node, where, OTHER_FILE)
            effective[node.name] = node
        for name in effective.keys() & interrupted.keys():
            folder = parts_folder(self._path)
            where = f"Node {name!r} of the interrupted run in {folder}"
            _agreed(interrupted[name], effective[name], where, OTHER_RUN.format(folder))
        if not effective:
            raise CacheError("A cache needs at least one node.", "Name one with --node.")
        return effective

    def _open_parts(self) -> None:
        self.parts = PartsFolder(parts_folder(self._path), self._spec, self._source_root)
        self.parts.declare(self.nodes)
        self._index_parts(self.parts.entries(), thorough=True)
        if self.parts.table is not None:
            table = self._catalog.open_part(self.parts.path, self.parts.table, thorough=True)
            self._catalog.add_keys(table)
            self.keys = tuple(table.images.key)

    def _index_parts(self, entries: Iterable[PartEntry], thorough: bool) -> None:
        for entry in entries:
            part = self._catalog.open_part(self.parts.path, entry, thorough)
            self._catalog.add_rows(part)
            self._catalog.add_keys(part)

    def index_new_parts(self) -> None:
        """Take in the parts that this run committed."""
        self._index_parts(self.parts.take_new(), thorough=False)  # read back when written

    @property
    def records(self) -> dict[str, Record]:
        """What is known of each key: digest, size, mtime_ns."""
        return self._catalog.records

    @property
    def failures(self) -> dict[str, Failure]:
        """Inputs that gave no row, by key."""
        return self._catalog.failures

    def missing(self, digest: bytes) -> tuple[str, ...]:
        """Names of the nodes that have no row, or no views, of this digest."""
        paths = self._catalog.index.missing(digest, self._name_of)
        if not paths:
            return ()
        names = {self._name_of[path] for path in paths}
        return tuple(name for name in self.nodes if name in names)

    def require_space(self, images: int, work: Mapping[tuple[str, ...], int]) -> None:
        """Raise CacheError where the disk has too little room for the parts and the files made of them.

        Parameters
        ----------
        images : rows of the finished file
        work : number of images by the nodes to be computed for them
        """
        computed = sum(work.values())
        if not computed:
            return
        need = (images + computed) * TABLE_BYTES
        need += sum(rows * self.nodes[name].row_bytes for names, rows in work.items() for name in names)
        for name, node in self.nodes.items():
            if not node.is_map:
                need += images * node.row_bytes
                continue
            fresh = sum(rows for names, rows in work.items() if name in names)
            held = len(self._companions[name].images) if name in self._companions else 0
            need += (held + fresh) * node.row_bytes if fresh else 0
        require_space(self._path.parent, need, f"Extracting {computed} images")

    def finish(self, images: ImageTable, samples: SampleTable, failures: list[Failure]) -> None:
        """Write what has changed, maps first: a main file never lacks the rows of its maps."""
        vectors = [node for node in self.nodes.values() if not node.is_map]
        for node in self.nodes.values():
            if node.is_map:
                self._finish_map(node, images)
        if not self._same_main(vectors, images, samples, failures):
            if self._main is not None:
                consolidate.require_sound(self._main, self._main.nodes.values())
            consolidate.write_main(
                self._path, self._spec, self._source_root, vectors, images, samples, failures, self._catalog
            )
        self.parts.remove()

    def _finish_map(self, node: NodeSpec, images: ImageTable) -> None:
        """Write a map's file where it lacks rows.

        The new one keeps the rows of the old main file's images, so that who has that open misses none.
        """
        companion = self._companions.get(node.name)
        tables = [images]
        if companion is not None:
            held = set(companion.images.digests())
            if held.issuperset(images.digests()) and companion.nodes[node.name] == node:
                return
            consolidate.require_sound(companion, [companion.nodes[node.name]])
            if self._main is not None:
                old = self._main.images
                complete = [not self._lacks(node, digest) for digest in old.digests()]
                tables.append(old.take(np.array(complete, bool)))
        consolidate.write_companion(
            companion_path(self._path, node),
            self._spec,
            self._source_root,
            node,
            consolidate.unique_images(tables),
            self._catalog,
        )

    def _lacks(self, node: NodeSpec, digest: bytes) -> bool:
        return bool(self._catalog.index.missing(digest, dataset_paths(node)))

    def finish_in_parts(self, images: ImageTable, samples: SampleTable, failures: list[Failure]) -> None:
        """End the run with its rows left in the parts."""
        if self._main is not None or self._companions:
            raise CacheError(
                f"{self._path} is one file already, so its new rows cannot stay in parts.",
                "Leave consolidate as it is, or begin another cache with -o.",
            )
        if self.parts.table is not None:
            table = self._catalog.open_part(self.parts.path, self.parts.table, thorough=False)
            if _same_tables(table, images, samples, failures):
                return
        self.parts.commit_table(images, samples, failures)

    def _same_main(
        self, vectors: list[NodeSpec], images: ImageTable, samples: SampleTable, failures: list[Failure]
    ) -> bool:
        return (
            self._main is not None
            and self._main.nodes == {node.name: node for node in vectors}
            and _same_tables(self._main, images, samples, failures)
        )

    def close(self) -> None:
        """Close every file."""
        self._catalog.close()
        if self.parts is not None:
            self.parts.close()


def _agreed(cached: NodeSpec, asked: NodeSpec, where: str, hint: str) -> NodeSpec:
    """The node as both describe it; views that only one side has are no difference."""
    views = asked.views if cached.views is None else cached.views
    ours = replace(cached, views=views)
    theirs = replace(asked, views=views if asked.views is None else asked.views)
    require_equal(ours.to_json(), theirs.to_json(), where, hint)
    return ours


def _same_tables(file: CacheFile, images: ImageTable, samples: SampleTable, failures: list[Failure]) -> bool:
    return (
        same_images(file.images, images)
        and same_columns(file.sample_columns, sample_columns(samples))
        and same_columns(failure_columns(file.failures), failure_columns(failures))
    )


def _remove_temporaries(path: Path) -> None:
    """Delete what an interrupted consolidation of the main file `path` left. The caller holds its lock.

    NAME--X.h5 is not touched if it has a lock file: it is then another cache, with a writer of its own.
    """
    names = set(os.listdir(path.parent))
    pattern = re.compile(rf"(.+?{re.escape(path.suffix)})(\.[0-9a-f]{{8}})?{re.escape(TEMPORARY)}")
    for match in filter(None, map(pattern.fullmatch, names)):
        target = match[1]
        is_companion = target.startswith(f"{path.stem}--") and f"{target}.lock" not in names
        if target == path.name or is_companion:
            path.with_name(match[0]).unlink(missing_ok=True)
