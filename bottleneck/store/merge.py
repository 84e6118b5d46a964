"""Several caches of one fingerprint become one, with nothing computed.

Shapes: I images, S samples, C classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from bottleneck.errors import CacheError
from bottleneck.samples import UNLABELLED, SampleTable, Target
from bottleneck.store import consolidate
from bottleneck.store.cachefile import CacheFile, find_companions
from bottleneck.store.layout import companion_path
from bottleneck.store.lock import CacheLock
from bottleneck.store.rows import Catalog
from bottleneck.store.spec import NodeSpec, require_equal
from bottleneck.store.tables import Failure, ImageTable, objects


def merge(paths: Sequence[str | os.PathLike], out: str | os.PathLike) -> dict:
    """Write the union of finished caches to the new file `out`.

    Images and samples keep their order, those of the first cache first. Caches of different folders are
    joined under the folders' common parent, and the keys are extended by what then lies between. An image or
    a sample that occurs twice must be the same both times.

    Parameters
    ----------
    paths : two or more main files
    out : path of a file that does not exist

    Returns
    -------
    dict with cache (the path written), images, samples, failed and nodes {name: shape of one row}

    Raises
    ------
    FingerprintError
        The caches were made with different settings; `fields` names them.
    CacheError
        Keys clash, the sources have no folder in common, or `out` exists.
    """
    out = Path(out)
    if len(paths) < 2:
        raise CacheError(f"Merging takes two caches or more, got {len(paths)}.")
    if out.exists():
        raise CacheError(f"{out} exists already.", "Name a new file with -o.")
    with CacheLock(out), closing(Catalog()) as catalog:
        files = [_opened(catalog, Path(path)) for path in paths]
        return _merge(files, out, catalog)


def _opened(catalog: Catalog, path: Path) -> CacheFile:
    file = CacheFile(path)
    catalog.pool.keep(file)
    if file.map_name is not None:
        raise CacheError(f"{path} is the map of a node; name the main file, and its maps come along.")
    return file


def _merge(files: list[CacheFile], out: Path, catalog: Catalog) -> dict:
    first = files[0]
    for file in files[1:]:
        where, hint = (
            f"{first.path}, beside {file.path},",
            "Only caches made with the same settings can be merged.",
        )
        require_equal(first.spec.to_json(), file.spec.to_json(), where, hint)
        require_equal(_nodes(first), _nodes(file), where, hint)
    root, prefixes = _common_root([file.source_root for file in files])
    images, row_of = _join_images(files, prefixes)
    samples = _join_samples(files, prefixes, row_of)
    keys = set(images.key)
    failures = {
        prefix + failure.key: replace(failure, key=prefix + failure.key)
        for file, prefix in zip(files, prefixes, strict=True)
        for failure in file.failures
    }
    kept: list[Failure] = [failure for key, failure in failures.items() if key not in keys]
    for file in files:
        consolidate.require_sound(file, file.nodes.values())
        catalog.add_rows(file)
    maps = _merge_maps(files, out, root, catalog)
    consolidate.write_main(out, first.spec, root, first.nodes.values(), images, samples, kept, catalog)
    return {
        "cache": str(out),
        "images": len(images),
        "samples": len(samples),
        "failed": len(kept),
        "nodes": {node.name: list(node.shape) for node in [*first.nodes.values(), *maps]},
    }


def _nodes(file: CacheFile) -> dict:
    return {name: node.to_json() for name, node in file.nodes.items()}


def _merge_maps(files: list[CacheFile], out: Path, root: str, catalog: Catalog) -> list[NodeSpec]:
    """Write a companion for each map that any cache has; it may cover fewer images than the main file."""
    maps: dict[str, list[CacheFile]] = {}
    for file in files:
        found, broken = find_companions(file.path, file.spec.fingerprint, file.source_root)
        for companion in found.values():
            catalog.pool.keep(companion)
        if broken:
            raise next(iter(broken.values()))
        for name, companion in found.items():
            maps.setdefault(name, []).append(companion)
    for name, companions in maps.items():
        node = companions[0].nodes[name]
        for companion in companions:
            where = f"{companions[0].path}, beside {companion.path},"
            require_equal(
                node.to_json(), companion.nodes[name].to_json(), where, "Delete one of the two maps."
            )
            consolidate.require_sound(companion, [node])
            catalog.add_rows(companion)
        images = consolidate.unique_images(companion.images for companion in companions)
        path = companion_path(out, node)
        consolidate.write_companion(path, companions[0].spec, root, node, images, catalog)
    return [companions[0].nodes[name] for name, companions in maps.items()]


def _common_root(roots: list[str]) -> tuple[str, list[str]]:
    """The folder that all roots lie in, and what to put before the keys of each."""
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


def _join_images(files: list[CacheFile], prefixes: list[str]) -> tuple[ImageTable, list[np.ndarray]]:
    """The union of the image tables, and for each file the new rows of its images."""
    rows: dict[str, tuple[int, tuple[str, bytes, int, int]]] = {}
    row_of = []
    for file, prefix in zip(files, prefixes, strict=True):
        mine = []
        for name, digest, size, mtime in file.images.rows():
            key = prefix + name
            at, row = rows.setdefault(key, (len(rows), (key, digest, size, mtime)))
            if row[1] != digest:
                raise CacheError(
                    f"The image {key!r} differs between {file.path} and an earlier cache.",
                    "Extract the older of the two again, then merge.",
                )
            mine.append(at)
        row_of.append(np.array(mine, np.int64))
    return ImageTable.of([row for _, row in rows.values()]), row_of


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


def _join_target(name: str, tables: list[SampleTable]) -> Target:
    """One target over all tables; classes are joined by name, samples without it are unlabelled."""
    found = [table.targets[name] for table in tables if name in table.targets]
    if len({target.kind for target in found}) > 1:
        raise CacheError(
            f"The target {name!r} is {found[0].kind} in one cache and something else in another."
        )
    names = tuple(dict.fromkeys(label for target in found for label in target.class_names))
    blank = Target(name, found[0].kind, np.zeros(0), names)
    values = [_recoded(table.targets.get(name), blank, len(table)) for table in tables]
    return replace(blank, values=np.concatenate(values))


def _recoded(target: Target | None, joined: Target, count: int) -> np.ndarray:
    """A target's values in the codes (or columns) of the joined class names."""
    if joined.kind == "regression":
        return np.full(count, np.nan) if target is None else target.values
    place = {name: at for at, name in enumerate(joined.class_names)}
    if joined.kind == "class":
        if target is None:
            return np.full(count, UNLABELLED, np.int64)
        codes = np.array([place[name] for name in target.class_names] + [UNLABELLED], np.int64)
        return codes[target.values]  # −1 takes the last
    values = np.full((count, len(place)), 255, np.uint8)
    if target is not None:
        values[target.labelled] = 0
        values[:, [place[name] for name in target.class_names]] = target.values
    return values


def _without_repeats(samples: SampleTable) -> SampleTable:
    """Drop samples that occur again with the same content; refuse those that differ."""
    first: dict[str, int] = {}
    kept = np.ones(len(samples), bool)
    for at, key in enumerate(samples.key):
        before = first.setdefault(key, at)
        if before != at:
            if _content(samples, before) != _content(samples, at):
                raise CacheError(
                    f"The sample {key!r} occurs in two caches with different images, labels or split.",
                    "Extract both sources again, so that they agree, then merge.",
                )
            kept[at] = False
    return samples.take(kept)


def _content(samples: SampleTable, at: int) -> tuple:
    labels = tuple(np.atleast_1d(target.values[at]).tobytes() for target in samples.targets.values())
    return tuple(samples.image[at]), samples.split[at], labels, samples.covariates[at].tobytes()
