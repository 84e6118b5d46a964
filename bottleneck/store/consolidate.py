"""From parts to one plain file: rows are gathered in blocks, the new file is checked and moved into place.

Shapes: I images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import h5py

from bottleneck.errors import CacheError
from bottleneck.files import replacing
from bottleneck.samples import SampleTable
from bottleneck.store import layout
from bottleneck.store.cachefile import CacheFile, dataset_paths
from bottleneck.store.rows import Catalog
from bottleneck.store.spec import CacheSpec, NodeSpec
from bottleneck.store.tables import Failure, ImageTable, failure_columns, sample_columns


def write_main(
    path: Path,
    spec: CacheSpec,
    source_root: str,
    nodes: Iterable[NodeSpec],
    images: ImageTable,
    samples: SampleTable,
    failures: list[Failure],
    catalog: Catalog,
) -> None:
    """Write and move into place the main file `path`."""

    def fill(file: h5py.File) -> None:
        layout.write_root(file, spec, source_root)
        layout.write_images(file, images)
        _write_nodes(file, spec, nodes, images, catalog)
        layout.write_columns(file, sample_columns(samples))
        layout.write_columns(file, failure_columns(failures))

    _replace(path, fill)


def write_companion(
    path: Path, spec: CacheSpec, source_root: str, node: NodeSpec, images: ImageTable, catalog: Catalog
) -> None:
    """Write and move into place the file of one node's map."""

    def fill(file: h5py.File) -> None:
        layout.write_root(file, spec, source_root, map_name=node.name)
        layout.write_images(file, images)
        _write_nodes(file, spec, [node], images, catalog)

    _replace(path, fill)


def unique_images(tables: Iterable[ImageTable]) -> ImageTable:
    """The first image of each digest."""
    rows: dict[bytes, tuple[str, bytes, int, int]] = {}
    for table in tables:
        for row in table.rows():
            rows.setdefault(row[1], row)
    return ImageTable.of(list(rows.values()))


def require_sound(file: CacheFile, nodes: Iterable[NodeSpec]) -> None:
    """Compare the features that are about to be copied with their checksums, lest damage gets a new one."""
    for node in nodes:
        for path in dataset_paths(node):
            try:
                same = layout.checksum(file.file[path]) == file.file[path].attrs["sha256"]
            except (OSError, RuntimeError, KeyError) as error:
                raise file.damaged(f"/{path} cannot be read ({error})") from None
            if not same:
                raise file.damaged(f"/{path} does not match its checksum")


def _write_nodes(
    file: h5py.File, spec: CacheSpec, nodes: Iterable[NodeSpec], images: ImageTable, catalog: Catalog
) -> None:
    for node in nodes:
        for views in (False, True) if node.views is not None else (False,):
            rows = catalog.rows(node, images.digest, views)
            if len(rows.absent):
                raise CacheError(f"Node {node.name!r} lacks {len(rows.absent)} rows that were promised.")
            layout.write_rows(file, spec, node, len(images), rows.blocks(), views)


def _replace(path: Path, fill: Callable[[h5py.File], None]) -> None:
    """Build a file beside `path`, check it, and move it into place."""
    with replacing(path) as fresh:
        with layout.new_file(fresh) as file:
            fill(file)
            layout.seal(file)
        with CacheFile(fresh) as written:
            require_sound(written, written.nodes.values())
            _ = written.images, written.samples, written.failures  # each compares its checksums
