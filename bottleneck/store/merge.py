"""Merge several caches that were made with the same settings into one, without computing anything.

Shapes: I images, S samples.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.errors import CacheError, Note, counted
from bottleneck.files import require_space, write_whole
from bottleneck.remote.path import RemotePath, output_path, path_of
from bottleneck.store import consolidate
from bottleneck.store.cachefile import CacheFile, find_companions
from bottleneck.store.join import common_root, join_failures, join_images, join_samples, join_shards
from bottleneck.store.layout import PARTS, companion_path, parts_folder, statistics_path
from bottleneck.store.lock import CacheLock
from bottleneck.store.parts import read_log
from bottleneck.store.plan import TABLE_BYTES
from bottleneck.store.rows import Catalog
from bottleneck.store.spec import NodeSpec, Origin, require_equal
from bottleneck.store.staging import staged, staging_folder
from bottleneck.store.tables import CacheTables, ImageTable
from bottleneck.store.validate import no_cache


def merge(
    paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    dry_run: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Write the union of finished caches to `out`.

    Images and samples keep their order, those of the first cache first. Shards of a source are put in the
    order of the whole source. A note names those that are missing; they may be merged later, since the merged
    cache remembers which it has. If the caches have different source folders, the merged cache has their
    common parent, and each key is prefixed by the path from the parent to its folder. An image or a sample
    that occurs in several caches must be the same in each; one row of it is kept.

    Each file is written beside its place and moved there in one rename, the main file last. After a merge
    that was stopped the caches are as they were; the next one keeps the maps that are complete.

    Parameters
    ----------
    paths : two or more main files
    out : path or URL of a file that does not exist, or one of `paths`, which is then extended
    dry_run : compare the caches and write nothing
    tell : is told where work is kept after an error, for a URL

    Returns
    -------
    dict with cache (the path written), images, samples, failed, nodes {name: shape of one row}, bytes (of the
    rows) and notes

    Raises
    ------
    FingerprintError
        The caches were made with different settings, or are shards of different sources; `fields` names
        what differs.
    CacheError
        Keys clash, the sources have no folder in common, `out` is another cache or that of an interrupted
        run, or the disk has no room.
    """
    given, target = [path_of(path) for path in paths], output_path(out)
    if len(given) < 2:
        raise CacheError(f"Merging takes two caches or more, got {len(given)}.")
    if target.exists() and not any(_is_same(path, target) for path in given):
        raise CacheError(
            f"{target} exists already and is none of the caches.",
            "Name it among the caches to extend it, or a new file with -o.",
        )
    if dry_run:
        return _merged(given, target, dry_run)
    with staged(target, tell) as place:
        values = _merged([place.path if path == target else path for path in given], place.path, dry_run)
        place.finish()
        notes = [note.to_json() for note in place.told([])]
    return {**place.named(values), "notes": place.named(values["notes"]) + notes}


def _is_same(path: Path, other: Path) -> bool:
    """Return whether two paths are one file; a URL is none of this machine."""
    if isinstance(path, RemotePath) or isinstance(other, RemotePath):
        return path == other
    return path.exists() and path.samefile(other)


def _merged(paths: Sequence[Path], out: Path, dry_run: bool) -> dict[str, Any]:
    """Merge as `merge` does; `out` is a file of this machine, except where nothing is written."""
    with ExitStack() as stack:
        if not dry_run:
            stack.enter_context(CacheLock(out))
        _require_no_run(out)
        if not dry_run:
            consolidate.remove_temporaries(out)
        catalog = stack.enter_context(closing(Catalog()))
        files = [_open(catalog, path) for path in paths]
        return _Merge(files, out, catalog).run(dry_run)


def _require_no_run(out: Path) -> None:
    """Raise CacheError where an interrupted extraction would go on in `out`."""
    if parts_folder(out).is_dir():
        raise CacheError(
            f"{parts_folder(out)} has rows of an interrupted run, which writes {out}.",
            "Name another file with -o; or finish the run by its `bottleneck extract`, or delete its folder.",
        )


def _require_one_file(path: Path) -> None:
    """Raise CacheError where a cache is a folder of parts, which `path` or the file beside it names."""
    main = path.with_name(path.name.removesuffix(PARTS))
    if main.is_file() or not parts_folder(main).is_dir():
        return
    log = read_log(parts_folder(main))
    if log is None or log.table is None:
        raise no_cache(main)
    raise CacheError(
        f"{parts_folder(main)} is a cache in parts; merging takes caches of one file.",
        "Run its `bottleneck extract` again without --keep-parts: it computes nothing and writes the file.",
    )


def _open(catalog: Catalog, path: Path) -> CacheFile:
    _require_one_file(path)
    file = CacheFile(path)
    catalog.pool.add(file)
    if file.map_name is not None:
        raise CacheError(
            f"{path} is the map of a node, not a main file.",
            "Name the main file; its maps are merged as well.",
        )
    return file


class _Merge:
    """One merge of open main files, which may be those of `out` itself."""

    def __init__(self, files: list[CacheFile], out: Path, catalog: Catalog) -> None:
        self._files, self._out, self._catalog = files, out, catalog
        extended = [file for file in files if out.exists() and _is_same(file.path, out)]
        self._extends = len(extended[0].digest) if extended else None
        self._notes: list[Note] = []
        first = files[0]
        for file in files[1:]:
            where = f"{first.path}, beside {file.path},"
            hint = "Only caches made with the same settings can be merged."
            require_equal(first.spec.to_json(), file.spec.to_json(), where, hint)
            require_equal(_nodes(first), _nodes(file), where, hint)
        self._nodes = [_joined(name, files) for name in first.nodes]

    def run(self, dry_run: bool) -> dict[str, Any]:
        """Join the tables, then write the files."""
        files, first, catalog = self._files, self._files[0], self._catalog
        root, prefixes = common_root([file.origin.source_root for file in files])
        sources = {file.origin.source for file in files}
        origin = Origin(first.spec, root, sources.pop() if len(sources) == 1 else "")
        shard = join_shards(files)
        images, row_of = join_images(files, prefixes, by_key=shard is not None)
        samples = join_samples(files, prefixes, row_of)
        if shard is not None:
            assert samples.position is not None  # shards have it
            samples = samples.take(np.argsort(samples.position))
            left = {"shard": shard} if shard.missing else {"shard": None, "position": None}
            samples = replace(samples, **left)
        self._tell(sum(map(len, row_of)) - len(images), len(images))
        for file in files:
            catalog.add_rows(file)
            catalog.add_measures(file)
        images = replace(images, measures=catalog.measures(images.digest))
        tables = CacheTables(images, samples, join_failures(files, prefixes, images))
        maps = self._maps()
        nodes = [*self._nodes, *(parts[0].nodes[name] for name, parts in maps.items())]
        need = sum(node.bytes_of(len(images)) for node in nodes)
        folder = staging_folder(self._out) if isinstance(self._out, RemotePath) else self._out.parent
        require_space(folder, need + len(images) * TABLE_BYTES, f"Merging {len(images):,} images")
        if not dry_run:
            self._write(origin, tables, maps)
        return {
            "cache": str(self._out),
            "images": len(images),
            "samples": len(samples),
            "failed": len(tables.failures),
            "nodes": {node.name: list(node.shape) for node in nodes},
            "bytes": need,
            "notes": [note.to_json() for note in [*samples.part_notes(), *self._notes]],
        }

    def _tell(self, repeats: int, images: int) -> None:
        """Note what is joined, and that a cache is extended."""
        if self._extends is not None:
            text = (
                f"{self._out} is extended in its place from {self._extends:,} to {images:,} images, by a new "
                "file that is moved there when it is complete."
            )
            self._notes.append(
                Note("cache-extended", text, details={"before": self._extends, "images": images})
            )
        if repeats:
            are = counted(repeats, "row is", "rows are")
            text = f"{are} of images that an earlier cache has; one row of each image is kept."
            self._notes.append(Note("rows-of-same-images", text, details={"rows": repeats}))

    def _maps(self) -> dict[str, list[CacheFile]]:
        """Return the companions of each map that any cache has; it may have rows of some images only."""
        maps: dict[str, list[CacheFile]] = {}
        for file in self._files:
            companions, errors = find_companions(file.path, file.origin.spec)
            for name, companion in companions.items():
                self._catalog.pool.add(companion)
                maps.setdefault(name, []).append(companion)
            if errors:
                raise next(iter(errors.values()))
        for name, parts in maps.items():
            for part in parts[1:]:
                where = f"{parts[0].path}, beside {part.path},"
                ours, theirs = parts[0].nodes[name].recipe(), part.nodes[name].recipe()
                require_equal(ours, theirs, where, "Delete one of the two maps.")
        return maps

    def _write(self, origin: Origin, tables: CacheTables, maps: Mapping[str, Sequence[CacheFile]]) -> None:
        """Write the maps that are not there yet, then the main file."""
        for file in self._files:
            file.require_sound(self._nodes)
        written: list[Path] = []
        try:
            for name, parts in maps.items():
                self._write_map(origin, _joined(name, parts), parts, written)
            self._copy_statistics()
            consolidate.write_main(self._out, origin, self._nodes, tables=tables, catalog=self._catalog)
        except BaseException:
            for path in written if self._extends is None else ():  # maps of a cache that was not written
                path.unlink(missing_ok=True)
            raise

    def _write_map(
        self, origin: Origin, node: NodeSpec, parts: Sequence[CacheFile], written: list[Path]
    ) -> None:
        """Write a companion, and enter its path in `written`; keep one that a stopped merge has completed."""
        for part in parts:
            part.require_sound([node])
            self._catalog.add_rows(part)
        images = consolidate.unique_images(part.images for part in parts)
        path = companion_path(self._out, node)
        if path.exists() and not any(_is_same(part.path, path) for part in parts):
            self._require_rest(path, origin, node, images)
            text = f"{path} is complete from a merge that was stopped, and is kept."
            self._notes.append(Note("map-of-stopped-merge", text, details={"file": str(path)}))
            return
        consolidate.write_companion(path, origin, node, images=images, catalog=self._catalog)
        written.append(path)

    def _require_rest(self, path: Path, origin: Origin, node: NodeSpec, images: ImageTable) -> None:
        """Raise CacheError unless the file is the map that a merge of these caches has written."""
        try:
            with CacheFile(path) as rest:
                same = (rest.origin, rest.nodes) == (origin, {node.name: node})
                if same and consolidate.has_rows_of(rest, images) and not rest.damage([node]):
                    return
        except CacheError:
            pass
        raise CacheError(f"{path} exists already.", "Name a new file with -o.")

    def _copy_statistics(self) -> None:
        """Write the BatchNorm statistics of a random network, equal in all caches, beside the new one."""
        if not self._files[0].spec.backbone.get("calibrated") or self._extends is not None:
            return
        beside = [statistics_path(file.path) for file in self._files]
        found = [path for path in beside if path.exists()]
        if not found:
            raise CacheError(
                f"{beside[0]} is missing: it has the BatchNorm statistics of the caches' random network.",
                "Put it back beside its cache.",
            )
        write_whole(statistics_path(self._out), found[0].read_bytes())


def _joined(name: str, files: Sequence[CacheFile]) -> NodeSpec:
    """Return the description of a node that all files have, with what any of them tells of it."""
    return reduce(NodeSpec.with_facts_of, (file.nodes[name] for file in files))


def _nodes(file: CacheFile) -> dict[str, Any]:
    return {name: node.recipe() for name, node in file.nodes.items()}
