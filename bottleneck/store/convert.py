"""Export a cache for other tools: one .npz of arrays, or one Parquet table of samples, written in blocks.

Shapes: I images, S samples, M images per sample, D features, P covariates.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.errors import CacheError
from bottleneck.files import FileStat, replacing
from bottleneck.store.exchange import FEATURES, blocks_of_table, import_pyarrow
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import alias_note


def export(
    path: str | os.PathLike[str], out: str | os.PathLike[str], nodes: Sequence[str] | None = None
) -> dict[str, Any]:
    """Write the content of a cache to a file for other tools.

    Parameters
    ----------
    path : the cache
    out : file ending in .npz or .parquet; an existing one is replaced
        .npz: the arrays of the format under their paths, "images/key", "features/NODE" …; strings as unicode.
        .parquet: a row per sample (or per image, if the cache has no samples) with its key, image, split,
        group, labels by name, covariates, and each node's features as a list of float32.
    nodes : names of the nodes to write; all vector nodes by default

    Returns
    -------
    dict with path, arrays: {array or column: its shape}, and notes

    Raises
    ------
    CacheError
        The file name has another ending, a node is absent, or pyarrow is not installed.
    WriteError
    """
    out = Path(out)
    writers = {".npz": _write_npz, ".parquet": _write_parquet}
    if out.suffix not in writers:
        raise CacheError(f"A cache is exported to .npz or .parquet, not to {out.suffix or 'no ending'!r}.")
    with FeatureCache(path) as cache:
        names = cache.vector_names if nodes is None else list(nodes)
        stored = [cache.node(name).name for name in names]
        notes = cache.samples.part_notes()
        notes += [alias_note(*pair) for pair in zip(names, stored, strict=True) if pair[0] != pair[1]]
        with replacing(out) as fresh:
            shapes = writers[out.suffix](cache, fresh, stored)
    arrays = {name: list(shape) for name, shape in shapes.items()}
    return {"path": str(out), "arrays": arrays, "notes": notes}


def _write_npz(cache: FeatureCache, path: Path, names: list[str]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, shape, dtype, blocks in _arrays(cache, names):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                header = {
                    "descr": np.lib.format.dtype_to_descr(dtype),
                    "fortran_order": False,
                    "shape": shape,
                }
                np.lib.format.write_array_header_2_0(entry, header)
                for block in blocks:
                    entry.write(np.ascontiguousarray(block, dtype).tobytes())
            shapes[name] = shape
    return shapes


def _arrays(
    cache: FeatureCache, names: list[str]
) -> Iterator[tuple[str, tuple[int, ...], np.dtype, Iterable[np.ndarray]]]:
    """Yield name, shape, type and blocks of every array."""
    images, samples = cache.images, cache.samples
    whole = {
        "images/key": images.key.astype(str),
        "images/digest": images.digest,
        **{f"images/{name}": column for name, column in zip(FileStat._fields, images.stat.T, strict=True)},
        "samples/key": samples.key.astype(str),
        "samples/image": samples.image,
        "samples/split": samples.split.astype(str),
        "covariates": samples.covariates,
        "covariates/names": np.array(samples.covariate_names, str),
        "failures/key": np.array(list(cache.failures), str),
        "failures/reason": np.array(list(cache.failures.values()), str),
    }
    if samples.group is not None:
        whole["samples/group"] = samples.group.astype(str)
    for name, target in samples.targets.items():
        whole[f"labels/{name}"] = target.values
        whole[f"labels/{name}/class_names"] = np.array(target.class_names, str)
    for name, array in whole.items():
        yield name, array.shape, array.dtype, [array]
    for name in names:
        rows = cache.features(name)
        yield f"features/{name}", rows.shape, rows.dtype, rows.blocks()
        if cache.nodes[name].views is not None:
            rows = cache.views(name)
            yield f"views/{name}", rows.shape, rows.dtype, rows.blocks()


def _write_parquet(cache: FeatureCache, path: Path, names: list[str]) -> dict[str, tuple[int, ...]]:
    parquet = import_pyarrow("pyarrow.parquet")
    features = {name: cache.features(name) for name in names}
    shapes: dict[str, tuple[int, ...]] = {}
    writer = None
    try:
        for table in blocks_of_table(cache.images.key, cache.samples, features):
            writer = writer or parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
            for field in table.schema:
                before = shapes.get(field.name, (0,))[0]
                width = (field.type.list_size,) if field.name.startswith(FEATURES) else ()
                shapes[field.name] = (before + len(table), *width)
    finally:
        if writer is not None:
            writer.close()
    return shapes
