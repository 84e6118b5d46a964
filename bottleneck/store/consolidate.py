"""Make plain files from committed parts: rows are gathered in blocks, each new file is checked and renamed.

Shapes: I images.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import h5py
import numpy as np

from bottleneck.errors import CacheError, counted
from bottleneck.files import TEMPORARY, replacing
from bottleneck.store import layout
from bottleneck.store.cachefile import CacheFile
from bottleneck.store.index import Runs, repeated
from bottleneck.store.layout import companion_path
from bottleneck.store.parts import PartsFolder
from bottleneck.store.rows import Catalog
from bottleneck.store.spec import NodeSpec, Origin
from bottleneck.store.state import CacheState
from bottleneck.store.tables import (
    CacheTables,
    ImageTable,
    failure_columns,
    same_columns,
    sample_columns,
)


def write_cache(state: CacheState, tables: CacheTables) -> None:
    """Write the files that have changed. Maps come first, so that no main file lacks their rows."""
    vectors = [node for node in state.nodes.values() if not node.is_map]
    for node in state.nodes.values():
        if node.is_map:
            _update_map(state, node, tables.images)
    main = state.main
    if main is not None:
        sound = state.path not in state.damage and not state.damaged_samples
        same = sound and main.nodes == {node.name: node for node in vectors} and _same_tables(main, tables)
        if same:
            return
    write_main(state.path, state.origin, vectors, tables, state.catalog)


def _update_map(state: CacheState, node: NodeSpec, images: ImageTable) -> None:
    """Write a map's file if it lacks rows or some are damaged.

    The new file keeps the rows of the old main file's images, for readers that have the old one open.
    """
    companion = state.companions.get(node.name)
    tables = [images]
    if companion is not None:
        complete = has_rows_of(companion, images) and companion.nodes[node.name] == node
        if complete and companion.path not in state.damage:
            return
        if state.main is not None:
            old = state.main.images
            tables.append(old.take(state.catalog.has(old.digest, node.datasets)))
    path = companion_path(state.path, node)
    write_companion(path, state.origin, node, unique_images(tables), state.catalog)


def finish_in_parts(state: CacheState, parts: PartsFolder, tables: CacheTables) -> None:
    """End a run with its rows left in the parts."""
    if state.main is not None or state.companions:
        raise CacheError(
            f"{state.path} is one file already, so its new rows cannot stay in parts.",
            "Leave consolidate as it is, or begin another cache with -o.",
        )
    entry = None if state.log is None or parts.reopened else state.log.table
    if entry and _same_tables(state.catalog.open_part(parts.path, entry, thorough=False), tables):
        return
    parts.commit_tables(tables)


def write_main(
    path: Path, origin: Origin, nodes: Iterable[NodeSpec], tables: CacheTables, catalog: Catalog
) -> None:
    """Write a main file and move it into place."""

    def fill(file: h5py.File) -> None:
        layout.write_root(file, origin)
        layout.write_columns(file, tables.images.columns())
        _write_nodes(file, origin, nodes, tables.images, catalog)
        layout.write_columns(file, sample_columns(tables.samples))
        layout.write_columns(file, failure_columns(tables.failures))

    _replace(path, fill)


def write_companion(path: Path, origin: Origin, node: NodeSpec, images: ImageTable, catalog: Catalog) -> None:
    """Write the file of one node's map and move it into place."""

    def fill(file: h5py.File) -> None:
        layout.write_root(file, origin, map_name=node.name)
        layout.write_columns(file, images.columns())
        _write_nodes(file, origin, [node], images, catalog)

    _replace(path, fill)


def unique_images(tables: Iterable[ImageTable]) -> ImageTable:
    """Return the first image of each digest, without measures."""
    joined = ImageTable.joined(list(tables))
    return joined.take(np.delete(np.arange(len(joined)), repeated(joined.digest)))


def has_rows_of(file: CacheFile, images: ImageTable) -> bool:
    """Return whether a file has a row of each image, by digest."""
    stored = Runs()
    stored.add(file.digest)
    return bool((stored.find(images.digest) >= 0).all())


def remove_temporaries(path: Path) -> None:
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


def _same_tables(file: CacheFile, tables: CacheTables) -> bool:
    return len(file.images) == len(tables.images) and same_columns(file.read_tables(), tables.columns())


def _write_nodes(
    file: h5py.File, origin: Origin, nodes: Iterable[NodeSpec], images: ImageTable, catalog: Catalog
) -> None:
    for node in nodes:
        for views in (False, True) if node.views is not None else (False,):
            rows = catalog.rows(node, images.digest, views)
            if len(rows.absent):
                raise CacheError(
                    f"Node {node.name!r} lacks "
                    f"{counted(len(rows.absent), 'row that was', 'rows that were')} promised."
                )
            layout.write_rows(
                file, origin.spec, node, rows.blocks(), views, catalog.engines.get(node.name, ())
            )


def _replace(path: Path, fill: Callable[[h5py.File], None]) -> None:
    """Write a file beside `path`, check it, and move it into place."""
    with replacing(path) as fresh:
        with layout.new_file(fresh) as file:
            fill(file)
            layout.seal(file)
        with CacheFile(fresh) as written:
            written.require_sound(written.nodes.values())
            _ = written.images, written.samples, written.failures  # reading them compares their checksums
