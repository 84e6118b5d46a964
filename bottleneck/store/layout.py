"""The HDF5 layout of format version 1, written: datasets with their checksums, and the seal over it all.

Shapes: N rows of a dataset, whatever they are rows of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path

import h5py
import numpy as np

from bottleneck import __version__
from bottleneck.errors import CacheError
from bottleneck.files import LatchedFile
from bottleneck.store.spec import CacheSpec, NodeSpec, canonical_json, fingerprint
from bottleneck.store.tables import Column, ImageTable, link_name

FORMAT = "bottleneck-feature-cache"
FORMAT_VERSION = 1
CHUNK_BYTES = 512 * 1024
LIBVER = ("v110", "v110")  # superblock and indexes of HDF5 1.10: their metadata carry checksums
BLOCK_BYTES = 16 * 1024 * 1024  # a block of a streaming dataset; two or three are held at a time
NODE_TEXTS = ("node", "pool", "dtype", "precision", "layout")  # of a NodeSpec, attributes of its rows
DTYPE_NAMES = ("float16", "float32", "float64", "int64", "uint8")


@contextmanager
def new_file(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file, to be made durable by the caller. Raises the first OSError of writing it.

    Superblock and indexes are those of HDF5 1.10, whose metadata carry checksums.
    """
    with LatchedFile(path) as raw:
        with h5py.File(raw, "w", libver=LIBVER) as file:
            yield file
            if raw.error is not None:
                raise raw.error
        if raw.error is not None:
            raise raw.error


def write_root(file: h5py.File, spec: CacheSpec, source_root: str, map_name: str | None = None) -> None:
    """Attributes of the root but its seal."""
    file.attrs["format"] = FORMAT
    file.attrs["format_version"] = np.int64(FORMAT_VERSION)
    file.attrs["backbone"] = canonical_json(spec.backbone)
    file.attrs["preprocess"] = canonical_json(spec.preprocess)
    file.attrs["fingerprint"] = spec.fingerprint
    file.attrs["source_root"] = source_root
    file.attrs["created_with"] = f"bottleneck-features {__version__}"
    if map_name is not None:
        file.attrs["map"] = map_name


def write_columns(file: h5py.File, columns: Mapping[str, Column]) -> None:
    """Small datasets, each at its path with its attributes and checksum."""
    for path, column in columns.items():
        dataset = _create(file, path, column.values.shape, column.values.dtype)
        if column.values.size:
            dataset[...] = column.values.astype(dataset.dtype)  # names the character set of strings
        for name, value in column.attributes.items():
            dataset.attrs[name] = value
        dataset.attrs["sha256"] = hashlib.sha256(np.ascontiguousarray(column.values).tobytes()).hexdigest()


def write_images(file: h5py.File, images: ImageTable, group: str = "images") -> None:
    """/images, or another group with the same columns."""
    write_columns(file, {f"{group}/{name}": Column(values) for name, values in images.columns().items()})


def write_rows(
    file: h5py.File,
    spec: CacheSpec,
    node: NodeSpec,
    count: int,
    blocks: Iterable[np.ndarray],
    views: bool = False,
) -> None:
    """/features/<node>, or /views/<node>, from blocks (B, …) that are `count` rows together."""
    shape = node.views_shape if views else node.shape
    path = f"{'views' if views else 'features'}/{link_name(node.name)}"
    dataset = _create(file, path, (count, *shape), np.dtype(node.dtype))
    digest, start = hashlib.sha256(), 0
    for block in blocks:
        block = np.ascontiguousarray(block)
        dataset[start : start + len(block)] = block
        digest.update(block)
        start += len(block)
    if start != count:
        raise CacheError(f"{path} was given {start} rows; expected {count}.")
    for name in NODE_TEXTS:
        dataset.attrs[name] = getattr(node, name)
    if node.calibration is not None:
        dataset.attrs["calibration"] = canonical_json(node.calibration)
    if views:
        dataset.attrs["views"] = canonical_json(node.views)
    dataset.attrs["fingerprint"] = node.fingerprint(spec, views)
    dataset.attrs["sha256"] = digest.hexdigest()


def seal(file: h5py.File) -> None:
    """Write the root's checksum; the last thing done to a file."""
    file.attrs["sha256"] = structure_checksum(file)


def structure_checksum(file: h5py.File) -> str:
    """Fingerprint of every object's path, attributes, shape and type (FORMAT.md, section 7)."""
    objects = {"/": {"attributes": _attributes(file)}}
    objects["/"]["attributes"].pop("sha256", None)

    def describe(path: str, item) -> None:
        entry = {"attributes": _attributes(item)}
        if isinstance(item, h5py.Dataset):
            entry |= {"shape": list(item.shape), "dtype": dtype_name(item.dtype)}
        objects[f"/{path}"] = entry

    file.visititems(describe)
    return fingerprint(objects)


def dtype_name(dtype: np.dtype) -> str:
    """The name of a stored type in the structure's checksum; ValueError for a type that no cache has."""
    if dtype.kind == "S":
        return f"string:{dtype.itemsize}"
    if dtype.name in DTYPE_NAMES and dtype.newbyteorder("<") == dtype:
        return dtype.name
    raise ValueError(f"type {dtype}")


def checksum(dataset: h5py.Dataset) -> str:
    """sha256 of a dataset's elements, read in blocks."""
    digest = hashlib.sha256()
    for start, stop in blocks_of(len(dataset), row_bytes(dataset)):
        digest.update(np.ascontiguousarray(dataset[start:stop]))
    return digest.hexdigest()


def blocks_of(count: int, bytes_per_row: int, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, int]]:
    """Ranges (start, stop) that cover `count` rows in blocks of bounded size, whole chunks each."""
    rows = chunk_rows(bytes_per_row)
    step = max(1, block_bytes // max(1, rows * bytes_per_row)) * rows
    for start in range(0, count, step):
        yield start, min(count, start + step)


def row_bytes(dataset: h5py.Dataset) -> int:
    """Bytes of one row."""
    return prod(dataset.shape[1:]) * dataset.dtype.itemsize


def chunk_rows(bytes_per_row: int) -> int:
    """Rows of one chunk."""
    return max(1, CHUNK_BYTES // max(1, bytes_per_row))


def companion_path(path: Path, node: NodeSpec) -> Path:
    """The file of a node's map beside the main file `path`."""
    return path.with_name(f"{path.stem}--{link_name(map_label(node))}{path.suffix}")


def map_label(node: NodeSpec) -> str:
    """What a companion's name says of its node."""
    return node.node if node.pool == "none" else f"{node.node}@{node.pool}"


def parts_folder(path: Path) -> Path:
    """The folder of an unfinished run beside the main file `path`."""
    return path.with_name(path.name + ".parts")


def _attributes(item) -> dict[str, str | int]:
    return {name: value if isinstance(value, str) else int(value) for name, value in item.attrs.items()}


def _create(file: h5py.File, path: str, shape: tuple[int, ...], dtype: np.dtype) -> h5py.Dataset:
    stored = h5py.string_dtype("utf-8", dtype.itemsize) if dtype.kind == "S" else dtype.newbyteorder("<")
    if not prod(shape):
        return file.create_dataset(path, shape=shape, dtype=stored)
    rows = min(shape[0], chunk_rows(prod(shape[1:]) * dtype.itemsize))
    return file.create_dataset(path, shape=shape, dtype=stored, chunks=(rows, *shape[1:]), fletcher32=True)
