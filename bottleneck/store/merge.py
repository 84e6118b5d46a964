"""Merge several caches that were made with the same settings into one, without computing anything.

Shapes: I images, S samples.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from bottleneck.errors import CacheError, FingerprintError
from bottleneck.remote.path import writable_path
from bottleneck.samples import UNLABELLED, SampleTable, Shard, Target
from bottleneck.store import consolidate
from bottleneck.store.cachefile import CacheFile, find_companions
from bottleneck.store.layout import companion_path
from bottleneck.store.lock import CacheLock
from bottleneck.store.rows import Catalog
from bottleneck.store.spec import NodeSpec, Origin, differences, require_equal
from bottleneck.store.tables import CacheTables, ImageRow, ImageTable, objects


def merge(paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> dict[str, Any]:
    """Write the union of finished caches to the new file `out`.

    Images and samples keep their order, those of the first cache first. Shards of a source are put in the
    order of the whole source. A note names those that are missing; they may be merged later, since the merged
    cache remembers which it has. If the caches have different source folders, the merged cache has their
    common parent, and each key is prefixed by the path from the parent to its folder. An image or a sample
    that occurs in several caches must be the same in each.

    Parameters
    ----------
    paths : two or more main files
    out : path of a file that does not exist

    Returns
    -------
    dict with cache (the path written), images, samples, failed, nodes {name: shape of one row} and notes

    Raises
    ------
    FingerprintError
        The caches were made with different settings, or are shards of different sources; `fields` names
        what differs.
    CacheError
        Keys clash, the sources have no folder in common, or `out` exists.
    """
    out = writable_path(out)
    if len(paths) < 2:
        raise CacheError(f"Merging takes two caches or more, got {len(paths)}.")
    if out.exists():
        raise CacheError(f"{out} exists already.", "Name a new file with -o.")
    with CacheLock(out), closing(Catalog()) as catalog:
        return _merge([_open(catalog, Path(path)) for path in paths], out, catalog)


def _open(catalog: Catalog, path: Path) -> CacheFile:
    file = CacheFile(path)
    catalog.pool.add(file)
    if file.map_name is not None:
        raise CacheError(
            f"{path} is the map of a node, not a main file.",
            "Name the main file; its maps are merged as well.",
        )
    return file


def _merge(files: list[CacheFile], out: Path, catalog: Catalog) -> dict[str, Any]:
    first = files[0]
    for file in files[1:]:
        where = f"{first.path}, beside {file.path},"
        hint = "Only caches made with the same settings can be merged."
        require_equal(first.spec.to_json(), file.spec.to_json(), where, hint)
        require_equal(_nodes(first), _nodes(file), where, hint)
    root, prefixes = common_root([file.origin.source_root for file in files])
    origin = Origin(first.spec, root)
    shard = _join_shards(files)
    images, row_of = _join_images(files, prefixes, by_key=shard is not None)
    samples = _join_samples(files, prefixes, row_of)
    if shard is not None:
        assert samples.position is not None  # shards have it
        samples = samples.take(np.argsort(samples.position))
        left = {"shard": shard} if shard.missing else {"shard": None, "position": None}
        samples = replace(samples, **left)
    keys = set(images.key)
    failures = {
        prefix + failure.key: replace(failure, key=prefix + failure.key)
        for file, prefix in zip(files, prefixes, strict=True)
        for failure in file.failures
    }
    tables = CacheTables(images, samples, [f for key, f in failures.items() if key not in keys])
    for file in files:
        file.require_sound(file.nodes.values())
        catalog.add_rows(file)
    written: list[Path] = []
    try:
        maps = _merge_maps(files, out, origin, catalog, written)
        consolidate.write_main(out, origin, first.nodes.values(), tables=tables, catalog=catalog)
    except BaseException:
        for path in written:  # maps of a cache that was not written
            path.unlink(missing_ok=True)
        raise
    return {
        "cache": str(out),
        "images": len(images),
        "samples": len(samples),
        "failed": len(tables.failures),
        "nodes": {node.name: list(node.shape) for node in [*first.nodes.values(), *maps]},
        "notes": [note.to_json() for note in samples.shard_notes()],
    }


def _nodes(file: CacheFile) -> dict[str, Any]:
    return {name: node.to_json() for name, node in file.nodes.items()}


def _merge_maps(
    files: list[CacheFile], out: Path, origin: Origin, catalog: Catalog, written: list[Path]
) -> list[NodeSpec]:
    """Write a companion for each map that any cache has; it may have rows of some images only.

    written : the paths are entered here as soon as they are written
    """
    maps: dict[str, list[CacheFile]] = {}
    for file in files:
        companions, errors = find_companions(file.path, file.origin.spec)
        for name, companion in companions.items():
            catalog.pool.add(companion)
            maps.setdefault(name, []).append(companion)
        if errors:
            raise next(iter(errors.values()))
    nodes = []
    for name, parts in maps.items():
        node = parts[0].nodes[name]
        for part in parts:
            where = f"{parts[0].path}, beside {part.path},"
            require_equal(node.to_json(), part.nodes[name].to_json(), where, "Delete one of the two maps.")
            part.require_sound([node])
            catalog.add_rows(part)
        images = consolidate.unique_images(part.images for part in parts)
        path = companion_path(out, node)
        if path.exists():
            raise CacheError(f"{path} exists already.", "Name a new file with -o.")
        consolidate.write_companion(path, origin, node, images=images, catalog=catalog)
        written.append(path)
        nodes.append(node)
    return nodes


def common_root(roots: list[str]) -> tuple[str, list[str]]:
    """Return the folder that contains all roots, and the prefix of the keys of each."""
    if len(set(roots)) == 1:
        return roots[0], [""] * len(roots)
    paths = [PurePosixPath(root) for root in roots]
    if not all(path.is_absolute() for path in paths):
        raise CacheError(
            f"The caches' sources have no folder in common: {', '.join(sorted(set(roots))[:3])}.",
            "Only caches of one source, or of local folders, can be merged.",
        )
    common = PurePosixPath(os.path.commonpath(roots))
    between = [path.relative_to(common).as_posix() for path in paths]
    return str(common), ["" if part == "." else f"{part}/" for part in between]


def _join_shards(files: list[CacheFile]) -> Shard | None:
    """Return the shards that all files hold together; None where they are no shards."""
    sharded = [(file, file.samples.shard) for file in files if file.samples.shard is not None]
    if not sharded:
        return None
    first, shard = sharded[0]
    whole = next((file for file in files if file.samples.shard is None), None)
    if whole is not None:
        raise CacheError(
            f"{first.path} holds shards of a source, {whole.path} does not.",
            "Merge all shards of the source first, then that cache with the other.",
        )
    for file, other in sharded[1:]:
        # One path for all: keys are relative to it, and a shard elsewhere would be another folder's images.
        ours, theirs = (
            {"shards": each.of, "source_root": one.origin.source_root, **each.plan}
            for one, each in ((first, shard), (file, other))
        )
        if fields := differences(ours, theirs):
            raise FingerprintError(
                f"{first.path} and {file.path} are shards of different sources; "
                f"what differs: {', '.join(fields)}.",
                "Extract all shards again, from one path, of an unchanged source, with the same options.",
                fields=tuple(fields),
            )
    numbers = sorted({number for _, each in sharded for number in each.numbers})
    return replace(shard, numbers=tuple(numbers))


def _join_images(
    files: list[CacheFile], prefixes: list[str], by_key: bool
) -> tuple[ImageTable, list[np.ndarray]]:
    """Return the union of the image tables and, for each file, the new rows of its images.

    by_key : in the order of the keys, else in that of the files.
    """
    rows: dict[str, tuple[int, ImageRow]] = {}
    row_of = []
    for file, prefix in zip(files, prefixes, strict=True):
        new_rows = []
        for name, digest, stat in file.images.rows():
            key = prefix + name
            index, row = rows.setdefault(key, (len(rows), (key, digest, stat)))
            if row[1] != digest:
                raise CacheError(
                    f"The image {key!r} differs between {file.path} and an earlier cache.",
                    "Extract the older of the two again, then merge.",
                )
            new_rows.append(index)
        row_of.append(np.array(new_rows, np.int64))
    measured = {digest: line for file in files for digest, line in file.images.measured().items()}
    images = ImageTable.of([row for _, row in rows.values()], measured)
    if by_key:
        order = np.argsort(images.key)
        rank = np.argsort(order)
        return images.take(order), [rank[new_rows] for new_rows in row_of]
    return images, row_of


def _join_samples(files: list[CacheFile], prefixes: list[str], row_of: list[np.ndarray]) -> SampleTable:
    tables = []
    for file, prefix, rows in zip(files, prefixes, row_of, strict=True):
        samples = file.samples
        image = rows[samples.image] if len(samples) else samples.image
        key = objects([prefix + key for key in samples.key])
        group = key if samples.group is None else samples.group
        tables.append(replace(samples, key=key, image=image, group=group))
    tables = [table for table in tables if len(table)] or tables[:1]
    _require_alike(tables)
    joined = SampleTable(
        key=np.concatenate([table.key for table in tables]),
        image=np.concatenate([table.image for table in tables]),
        split=np.concatenate([table.split for table in tables]),
        targets={name: _join_target(name, tables) for table in tables for name in table.targets},
        covariates=np.concatenate([table.covariates for table in tables]),
        covariate_names=tables[0].covariate_names,
        group=np.concatenate([table.group for table in tables]),
        columns=tables[0].columns if all(t.columns == tables[0].columns for t in tables) else {},
        position=_join_positions(tables),
    )
    if all(file.samples.group is None for file in files):
        joined = replace(joined, group=None)
    return _without_repeats(joined)


def _require_alike(tables: list[SampleTable]) -> None:
    for what, values in (
        ("images per sample", {table.image.shape[1] for table in tables}),
        ("covariates", {table.covariate_names for table in tables}),
    ):
        if len(values) > 1:
            raise CacheError(f"The caches' samples differ in their {what}: {sorted(values)}.")


def _join_positions(tables: list[SampleTable]) -> np.ndarray | None:
    positions = [table.position for table in tables if table.position is not None]
    return np.concatenate(positions) if len(positions) == len(tables) else None


def _join_target(name: str, tables: list[SampleTable]) -> Target:
    """Return one target over all tables; classes are joined by name, samples without it are unlabelled."""
    targets = [table.targets[name] for table in tables if name in table.targets]
    if len({target.kind for target in targets}) > 1:
        raise CacheError(
            f"The target {name!r} is {targets[0].kind} in one cache and something else in another."
        )
    names = tuple(dict.fromkeys(label for target in targets for label in target.class_names))
    blank = Target(name, targets[0].kind, np.zeros(0), names)
    values = [_recoded(table.targets.get(name), blank, len(table)) for table in tables]
    return replace(blank, values=np.concatenate(values))


def _recoded(target: Target | None, joined: Target, count: int) -> np.ndarray:
    """Return a target's values in the codes (or columns) of the joined class names."""
    if joined.kind == "regression":
        return np.full(count, np.nan) if target is None else target.values
    index = {name: i for i, name in enumerate(joined.class_names)}
    if joined.kind == "class":
        if target is None:
            return np.full(count, UNLABELLED, np.int64)
        codes = np.array([index[name] for name in target.class_names] + [UNLABELLED], np.int64)
        return codes[target.values]  # −1 selects the last
    values = np.full((count, len(index)), 255, np.uint8)
    if target is not None:
        values[target.labelled] = 0
        values[:, [index[name] for name in target.class_names]] = target.values
    return values


def _without_repeats(samples: SampleTable) -> SampleTable:
    """Drop samples that occur again with the same content. Raises CacheError if the contents differ."""
    first: dict[str, int] = {}
    new = np.ones(len(samples), bool)
    for index, key in enumerate(samples.key):
        before = first.setdefault(key, index)
        if before != index:
            if _content(samples, before) != _content(samples, index):
                raise CacheError(
                    f"The sample {key!r} occurs in two caches with different images, labels or split.",
                    "Extract both sources again, so that they agree, then merge.",
                )
            new[index] = False
    return samples.take(new)


def _content(samples: SampleTable, index: int) -> tuple[object, ...]:
    labels = tuple(np.atleast_1d(target.values[index]).tobytes() for target in samples.targets.values())
    return tuple(samples.image[index]), samples.split[index], labels, samples.covariates[index].tobytes()
