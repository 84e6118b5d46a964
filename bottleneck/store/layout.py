"""Write the HDF5 layout of format version 2: datasets with their checksums, and the seal over all of them.

Shapes: N rows of a dataset.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bottleneck import __version__
from bottleneck.errors import CacheError, counted
from bottleneck.files import LatchedFile
from bottleneck.names import CACHE_SUFFIXES
from bottleneck.store.spec import CacheSpec, NodeSpec, Origin, canonical_json, fingerprint, link_name
from bottleneck.store.tables import Column

FORMAT = "bottleneck-feature-cache"
FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
CHUNK_BYTES = 512 * 1024
LIBVER = ("v110", "v110")  # the file structure of HDF5 1.10 has checksums over its metadata
BLOCK_BYTES = 16 * 1024 * 1024  # rows are read and written in blocks; two or three are in memory at a time
PARTS = ".parts"  # ends the name of a parts folder
NODE_TEXTS = ("node", "pool", "dtype", "precision", "layout")  # fields of a NodeSpec, attributes of its rows
DTYPE_NAMES = ("float16", "float32", "float64", "int64", "uint8")


@contextmanager
def new_file(path: Path) -> Iterator[h5py.File]:
    """Create an HDF5 file, which the caller makes durable. Raises the first OSError of writing it."""
    with LatchedFile(path) as raw:
        with h5py.File(raw, "w", libver=LIBVER) as file:
            yield file
            if raw.error is not None:
                raise raw.error
        if raw.error is not None:
            raise raw.error


def write_root(file: h5py.File, origin: Origin, map_name: str | None = None) -> None:
    """Write the attributes of the root, except its seal."""
    spec = origin.spec
    file.attrs["format"] = FORMAT
    file.attrs["format_version"] = np.int64(FORMAT_VERSION)
    file.attrs["backbone"] = canonical_json(spec.backbone)
    file.attrs["preprocess"] = canonical_json(spec.preprocess)
    file.attrs["fingerprint"] = spec.fingerprint
    file.attrs["source_root"] = origin.source_root
    file.attrs["source"] = origin.source
    file.attrs["created_with"] = f"bottleneck-features {__version__}"
    if map_name is not None:
        file.attrs["map"] = map_name


def write_columns(file: h5py.File, columns: Mapping[str, Column]) -> None:
    """Write small datasets with their attributes and checksums; `columns` by path."""
    for path, column in columns.items():
        dataset = _create(file, path, column.values.shape, column.values.dtype)
        if column.values.size:
            dataset[...] = column.values.astype(dataset.dtype)  # names the character set of strings
        for name, value in column.attributes.items():
            dataset.attrs[name] = value
        dataset.attrs["sha256"] = sha256_of(column.values)


def write_rows(
    file: h5py.File,
    spec: CacheSpec,
    node: NodeSpec,
    blocks: Iterable[np.ndarray],
    views: bool = False,
    engines: Collection[str] = (),
) -> None:
    """Write the features of a node, or its views, from blocks (B, …) that are together a row per image.

    engines : that computed them; "" for rows of a file that does not tell. The images must be in the file.
    """
    path, shape = node.dataset(views), node.views_shape if views else node.shape
    count = len(file["images/key"])
    dataset = _create(file, path, (count, *shape), np.dtype(node.dtype))
    step = dataset.chunks[0] if dataset.chunks else 1
    digest, sums, start = hashlib.sha256(), np.zeros(-(-count // step), np.int64), 0
    for block in blocks:
        block = np.ascontiguousarray(block)
        dataset[start : start + len(block)] = block
        digest.update(block.data)
        _add_to_sums(sums, step, start, block)
        start += len(block)
    if start != count:
        raise CacheError(f"{path} was given {counted(start, 'row')}; expected {count}.")
    for name in NODE_TEXTS:
        dataset.attrs[name] = getattr(node, name)
    if node.aliases and not views:
        dataset.attrs["aliases"] = canonical_json(node.aliases)
    if node.decoding_agreement is not None and not views:
        dataset.attrs["decoding_agreement"] = canonical_json(node.decoding_agreement)
    if node.calibrated_on and not views:
        dataset.attrs["calibrated_on"] = canonical_json(node.calibrated_on)
    if any(engines) and not views:
        dataset.attrs["engines"] = canonical_json(sorted(set(engines)))
    if node.calibration is not None:
        dataset.attrs["calibration"] = canonical_json(node.calibration)
    if views:
        dataset.attrs["views"] = canonical_json(node.views)
    dataset.attrs["fingerprint"] = node.fingerprint(spec, views)
    dataset.attrs["sha256"] = digest.hexdigest()
    write_columns(file, {sums_path(path): Column(sums)})


def sums_path(path: str) -> str:
    """Return the path of the dataset that holds a crc32 of each chunk of the features or views at `path`."""
    return f"crc32_{path}"


def _add_to_sums(sums: np.ndarray, step: int, start: int, block: np.ndarray) -> None:
    """Continue the crc32 of each chunk of `step` rows by a block of rows that begins at row `start`."""
    for number in range(start // step, -(-(start + len(block)) // step)):
        first = number * step - start
        rows = block[max(0, first) : first + step]
        sums[number] = zlib.crc32(rows.data, int(sums[number]))


def seal(file: h5py.File) -> None:
    """Write the root's checksum. Nothing may be written to the file afterwards."""
    file.attrs["sha256"] = structure_checksum(file)


def structure_checksum(file: h5py.File) -> str:
    """Return the fingerprint of every object's path, attributes, shape and type (FORMAT.md, section 7)."""
    root = _attributes(file)
    root.pop("sha256", None)
    objects: dict[str, dict[str, Any]] = {"/": {"attributes": root}}

    def describe(path: str, item: h5py.Group | h5py.Dataset) -> None:
        entry: dict[str, Any] = {"attributes": _attributes(item)}
        if isinstance(item, h5py.Dataset):
            entry |= {"shape": list(item.shape), "dtype": dtype_name(item.dtype)}
        objects[f"/{path}"] = entry

    file.visititems(describe)
    return fingerprint(objects)


def dtype_name(dtype: np.dtype) -> str:
    """Return the name of a type in the structure's checksum. Raises ValueError if no cache may have it."""
    if dtype.kind == "S":
        return f"string:{dtype.itemsize}"
    if dtype.name in DTYPE_NAMES and dtype.newbyteorder("<") == dtype:
        return dtype.name
    raise ValueError(f"type {dtype}")


def sha256_of(values: np.ndarray) -> str:
    """Return the sha256 of an array's elements in C order."""
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()


def checksum(dataset: h5py.Dataset) -> str:
    """Return the sha256 of a dataset's elements, read in blocks."""
    digest = hashlib.sha256()
    for start, stop in blocks_of(len(dataset), row_bytes(dataset)):
        digest.update(np.ascontiguousarray(dataset[start:stop]).data)
    return digest.hexdigest()


def blocks_of(count: int, bytes_per_row: int, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, int]]:
    """Yield ranges (start, stop) that cover `count` rows in blocks of whole chunks and bounded size."""
    rows = chunk_rows(bytes_per_row)
    step = max(1, block_bytes // max(1, rows * bytes_per_row)) * rows
    for start in range(0, count, step):
        yield start, min(count, start + step)


def row_bytes(dataset: h5py.Dataset) -> int:
    """Return the bytes of one row."""
    return prod(dataset.shape[1:]) * dataset.dtype.itemsize


def chunk_rows(bytes_per_row: int) -> int:
    """Return the number of rows in one chunk."""
    return max(1, CHUNK_BYTES // max(1, bytes_per_row))


def cache_name(path: Path) -> str:
    """Return the name of a cache without .h5, .hdf5 or .parts in any case: files made of it begin with it."""
    name = path.name.removesuffix(PARTS)
    return next((name[: -len(end)] for end in CACHE_SUFFIXES if name.lower().endswith(end)), name)


def companion_path(path: Path, node: NodeSpec) -> Path:
    """Return the path of a node's map beside the main file `path`: NAME--NODE.h5, or NAME--NODE@POOL.h5."""
    label = node.node if node.pool == "none" else f"{node.node}@{node.pool}"
    return path.with_name(f"{path.stem}--{link_name(label)}{path.suffix}")


def statistics_path(path: Path) -> Path:
    """Return the path of the BatchNorm statistics of a random network beside the main file `path`."""
    return path.with_name(f"{path.stem}--batchnorm.safetensors")


def parts_folder(path: Path) -> Path:
    """Return the folder of an unfinished run beside the main file `path`."""
    return path.with_name(path.name + PARTS)


def _attributes(item: h5py.Group | h5py.Dataset) -> dict[str, str | int]:
    return {name: value if isinstance(value, str) else int(value) for name, value in item.attrs.items()}


def _create(file: h5py.File, path: str, shape: tuple[int, ...], dtype: np.dtype) -> h5py.Dataset:
    stored = h5py.string_dtype("utf-8", dtype.itemsize) if dtype.kind == "S" else dtype.newbyteorder("<")
    if not prod(shape):
        return file.create_dataset(path, shape=shape, dtype=stored)
    rows = min(shape[0], chunk_rows(prod(shape[1:]) * dtype.itemsize))
    return file.create_dataset(path, shape=shape, dtype=stored, chunks=(rows, *shape[1:]), fletcher32=True)
