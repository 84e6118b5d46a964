"""Join the tables of several caches into those of one: images, samples, targets, failures, shards.

Shapes: I images, S samples.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np

from bottleneck.errors import CacheError, FingerprintError
from bottleneck.samples import UNLABELLED, SampleTable, Shard, Target
from bottleneck.store.cachefile import CacheFile
from bottleneck.store.index import Runs, first_equal, hashes_of
from bottleneck.store.spec import differences
from bottleneck.store.tables import Failure, ImageTable, by_code_point, objects


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


def join_shards(files: list[CacheFile]) -> Shard | None:
    """Return the shards that all files hold together; None where they are no shards."""
    sharded = [(file, file.samples.shard) for file in files if file.samples.shard is not None]
    if not sharded:
        return None
    first, shard = sharded[0]
    whole = next((file for file in files if file.samples.shard is None), None)
    if whole is not None:
        raise CacheError(
            f"{first.path} holds shards of a source, {whole.path} does not.",
            f"If {whole.path} was merged from all shards, nothing is left to do; else merge all of them "
            "first, then that cache with the other.",
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


def join_images(
    files: list[CacheFile], prefixes: list[str], by_key: bool
) -> tuple[ImageTable, list[np.ndarray]]:
    """Return the union of the image tables and, for each file, the new rows of its images.

    by_key : in the order of the keys, else in that of the files.
    """
    tables = []
    for file, prefix in zip(files, prefixes, strict=True):
        start = prefix.encode("utf-8", "surrogateescape")
        name = np.char.add(start, file.images.name) if start else file.images.name
        tables.append(replace(file.images, name=name))
    joined, bounds = ImageTable.joined(tables), np.cumsum([len(table) for table in tables])
    first = first_equal(hashes_of(joined.name))
    differs = np.flatnonzero((joined.digest != joined.digest[first]).any(axis=1))
    if len(differs):
        key, number = joined.take(differs[:1]).key[0], np.searchsorted(bounds, differs[0], "right")
        raise CacheError(
            f"The image {key!r} differs between {files[number].path} and an earlier cache.",
            "Extract the older of the two again, then merge.",
        )
    kept = np.flatnonzero(first == np.arange(len(first)))
    if by_key:
        kept = kept[np.argsort(by_code_point(joined.name[kept]), kind="stable")]
    row = np.zeros(len(first), np.int64)
    row[kept] = np.arange(len(kept))
    return joined.take(kept), np.split(row[first], bounds[:-1])


def join_failures(files: list[CacheFile], prefixes: list[str], images: ImageTable) -> list[Failure]:
    """Return the failures of all files, without those of images that another file has; later ones count."""
    failures = {
        prefix + failure.key: replace(failure, key=prefix + failure.key)
        for file, prefix in zip(files, prefixes, strict=True)
        for failure in file.failures
    }
    rows = Runs()
    rows.add(hashes_of(images.name))
    failed = rows.find(hashes_of(list(failures))) < 0
    return [failure for failure, alone in zip(failures.values(), failed, strict=True) if alone]


def join_samples(files: list[CacheFile], prefixes: list[str], row_of: list[np.ndarray]) -> SampleTable:
    """Return the samples of all files, one of each key, in the order of the files.

    row_of : for each file, the joined rows of its images. Raises CacheError where the tables differ in kind,
    or one sample in content.
    """
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
        set_aside=tables[0].set_aside if all(t.set_aside == tables[0].set_aside for t in tables) else {},
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
    """Drop samples that occur again with the same content. Raises CacheError if the contents differ.

    A sample whose key is its group has none in its cache; it gets the one that it has in another.
    """
    first = first_equal(hashes_of(samples.key))
    again = np.flatnonzero(first != np.arange(len(first)))
    group = None if samples.group is None else samples.group.copy()
    for index in again.tolist():
        key, before = samples.key[index], first[index]
        given = set() if group is None else {group[before], group[index]} - {key}
        if _content(samples, before) != _content(samples, index) or len(given) > 1:
            raise CacheError(
                f"The sample {key!r} occurs in two caches with different images, labels, group or split.",
                "Extract both sources again, so that they agree, then merge.",
            )
        if group is not None and given:
            group[before] = given.pop()
    return replace(samples, group=group).take(np.delete(np.arange(len(first)), again))


def _content(samples: SampleTable, index: int) -> tuple[object, ...]:
    labels = tuple(np.atleast_1d(target.values[index]).tobytes() for target in samples.targets.values())
    return tuple(samples.image[index]), samples.split[index], labels, samples.covariates[index].tobytes()
