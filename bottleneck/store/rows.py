"""Which of several cache files has the row of which image, and its rows, read in any order in bounded memory.

Shapes: I images, D features, V views, S samples, M images per sample, P covariates, B rows of one read,
N digests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from threading import Lock

import numpy as np

from bottleneck.names import COVARIATES, MEASURES
from bottleneck.samples import InputBlock, RowReader, SampleTable
from bottleneck.store.cachefile import CacheFile, FilePool
from bottleneck.store.chunks import DamagedChunk
from bottleneck.store.index import BLOCK, Records, Runs, hashes_of
from bottleneck.store.layout import BLOCK_BYTES, blocks_of
from bottleneck.store.parts import PartEntry, require_intact
from bottleneck.store.spec import NodeSpec
from bottleneck.store.tables import MEASURED, Failure

ABSENT = -1  # file number and row of a digest that has no row
MEASURES_OF = frozenset([MEASURED])  # stands for a dataset: the rows of /images whose pixels were measured
MOST_COMPARED = 64  # files whose digests are kept beside the index, and compared with those asked for


class FeatureRows(RowReader):
    """Rows of one dataset in the order of a cache's images, from the files that hold them.

    Parameters
    ----------
    pool, paths : the files
    dataset : path of the dataset in each file
    files, row : (I,) index into `paths`, and row in that file, of each image; ABSENT if it has none

    Attributes
    ----------
    shape : (I, D), or (I, C, H, W) … for a map, with V after I for views
    dtype : float16 or float32
    """

    def __init__(
        self,
        pool: FilePool,
        paths: Sequence[Path],
        dataset: str,
        *,
        files: np.ndarray,
        row: np.ndarray,
        shape: tuple[int, ...],
        dtype: str,
    ) -> None:
        self._pool, self._paths, self._dataset = pool, paths, dataset
        self._files, self._row = files, row
        self.shape, self.dtype = shape, np.dtype(dtype)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def absent(self) -> np.ndarray:
        """Indices of the images that have no row."""
        return np.flatnonzero(self._files == ABSENT)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the rows start … stop−1."""
        start, stop, _ = slice(start, stop).indices(len(self))
        return self._gather(self._files[start:stop], self._row[start:stop])

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Return the rows `indices` (B,), in that order; an index may occur twice."""
        indices = np.asarray(indices, np.int64)
        return self._gather(self._files[indices], self._row[indices])

    def blocks(self, block_bytes: int = BLOCK_BYTES) -> Iterator[np.ndarray]:
        """Yield all rows in order, in blocks of bounded size."""
        row_bytes = prod(self.shape[1:]) * self.dtype.itemsize
        for start, stop in blocks_of(len(self), row_bytes, block_bytes):
            yield self.read(start, stop)

    def _gather(self, files: np.ndarray, row: np.ndarray) -> np.ndarray:
        out = np.empty((len(row), *self.shape[1:]), self.dtype)
        for number in sorted({*files.tolist()}):
            file = self._pool.get(self._paths[number])
            target = np.flatnonzero(files == number)
            target = target[np.argsort(row[target], kind="stable")]
            try:
                file.rows(self._dataset).fill(out, target, row[target])
            except DamagedChunk as damage:
                raise file.damaged_rows(self._dataset, np.arange(damage.start, damage.stop)) from None
        return out


class SideBySide(RowReader):
    """The rows of several nodes side by side, for the same images in the same order.

    Attributes
    ----------
    shape : (I, D₁ + D₂ + …), with views (I, V, D₁ + D₂ + …)
    widths : D₁, D₂ …
    dtype : float32 if any of them is
    """

    def __init__(self, parts: Sequence[FeatureRows]) -> None:
        self._parts = parts
        self.widths = tuple(part.shape[-1] for part in parts)
        self.shape = (*parts[0].shape[:-1], sum(part.shape[-1] for part in parts))
        self.dtype = np.result_type(*(part.dtype for part in parts))

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Return the rows `indices` (B,), in that order."""
        return np.concatenate([part.take(indices) for part in self._parts], axis=-1, dtype=self.dtype)


class SampleRows(RowReader):
    """Rows of samples: the features of the M images side by side, then the P covariates unchanged.

    Attributes
    ----------
    shape : (S, M·D + P), with views (S, V, M·D + P)
    inputs : blocks of the columns: each node of each image, then the covariates
    dtype : that of the features; float32 with covariates
    """

    def __init__(
        self,
        features: RowReader,
        samples: SampleTable,
        rows: np.ndarray | None = None,
        nodes: Sequence[str] = (),
    ) -> None:
        self._features = features
        self._image = samples.image if rows is None else samples.image[rows]
        covariates = samples.covariates if rows is None else samples.covariates[rows]
        self._covariates = covariates.astype(np.float32)
        width = self._image.shape[1] * features.shape[-1] + covariates.shape[1]
        self.shape = (len(self._image), *features.shape[1:-1], width)
        self.dtype = np.dtype(np.float32) if covariates.shape[1] else features.dtype
        widths = getattr(features, "widths", (features.shape[-1],))
        self.inputs = _input_blocks(nodes, widths, self._image.shape[1], covariates.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the rows start … stop−1."""
        start, stop, _ = slice(start, stop).indices(len(self))
        return self.take(np.arange(start, stop))

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Return the rows `indices` (B,), in that order."""
        image, covariates = self._image[indices], self._covariates[indices]
        if image.shape[1] == 1 and not covariates.shape[1]:
            return self._features.take(image[:, 0])
        out = np.empty((len(image), *self.shape[1:]), self.dtype)
        width = self._features.shape[-1]
        for m in range(image.shape[1]):
            out[..., m * width : (m + 1) * width] = self._features.take(image[:, m])
        if covariates.shape[1]:
            out[..., image.shape[1] * width :] = covariates.reshape(
                len(image), *(1,) * (out.ndim - 2), covariates.shape[1]
            )
        return out


class SampleMaps(RowReader):
    """The feature maps of samples.

    Attributes
    ----------
    shape : (S, C, H, W), or (S, M, C, H, W) for several images a sample
    dtype : that of the features
    """

    def __init__(self, features: FeatureRows, samples: SampleTable) -> None:
        self._features, self._image = features, samples.image
        images = self._image.shape[1]
        self.shape = (len(self._image), *((images,) if images > 1 else ()), *features.shape[1:])
        self.dtype = features.dtype

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Return the maps of the samples `indices` (B,), in that order."""
        image = self._image[indices]
        return self._features.take(image.reshape(-1)).reshape(len(image), *self.shape[1:])


@dataclass(frozen=True)
class _Column:
    """Datasets of one file and the digests (n, 32) of their rows. file : its number.

    rows : the numbers (n,) of these rows, where some of the file are left out; None for all.
    """

    file: int
    datasets: frozenset[str]
    digest: np.ndarray
    rows: np.ndarray | None = None


class _Group:
    """The places of the rows of datasets that the same files contain."""

    def __init__(self) -> None:
        self.runs = Runs()
        self._starts: list[int] = []
        self._columns: list[tuple[int, np.ndarray | None]] = []  # file number and rows

    def add(self, column: _Column) -> None:
        """Enter the rows of a column."""
        if len(column.digest):
            self._starts.append(len(self.runs))
            self._columns.append((column.file, column.rows))
            self.runs.add(column.digest)

    def locate(self, digest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return file number (N,) int32 and row (N,) int64 of each digest; ABSENT if it has none."""
        at = self.runs.find(digest)
        files, row = np.full(len(at), ABSENT, np.int32), np.full(len(at), ABSENT, np.int64)
        present = np.flatnonzero(at >= 0)
        starts = np.array(self._starts, np.int64)
        which = np.searchsorted(starts, at[present], "right") - 1
        files[present] = np.array([file for file, _ in self._columns], np.int32)[which]
        row[present] = at[present] - starts[which]
        for number in {*which.tolist()} & {
            n for n, (_, rows) in enumerate(self._columns) if rows is not None
        }:
            inside, rows = present[which == number], self._columns[number][1]
            assert rows is not None
            row[inside] = rows[row[inside]]
        return files, row


class Catalog:
    """Rows by digest and records by key, of many files. There is no Python object for a row.

    If two files hold a record of one key, the file that was added later counts. If two files hold the row of
    one digest, the one added first is read; both rows are equal.

    A finished cache needs no index: if the requested images are in the order of one file's rows, comparing
    the two digest columns is enough. The index is made when files overlap or rows have moved.

    Attributes
    ----------
    pool : FilePool
        Closes every file that was added.
    records : Records
    failures : dict of key to Failure; after `settle` no key is in both
    engines : by node, the engines that computed rows of it; "" stands for those of a file that does not tell
    """

    def __init__(self) -> None:
        self.pool = FilePool()
        self.records = Records()
        self.failures: dict[str, Failure] = {}
        self.engines: dict[str, frozenset[str]] = {}
        self._failed_at: dict[str, int] = {}  # number of records that were known before
        self._paths: list[Path] = []
        self._columns: list[_Column] = []
        self._groups: dict[frozenset[str], _Group] = {}  # by datasets
        self._entered = 0  # number of columns that are in their group
        self._entering = Lock()  # threads that decode ask for digests

    def add_rows(self, file: CacheFile, damage: Mapping[str, np.ndarray] | None = None) -> None:
        """Enter where the file's rows are; `damage` has the rows of some datasets that count as absent."""
        damage = damage or {}
        if file.map_name is not None:
            file.image_group("images")  # compared with its checksums; only the digests are kept
        number, digest = len(self._paths), file.digest
        datasets = frozenset(path for node in file.nodes.values() for path in node.datasets)
        if len(digest):
            for name, engines in file.engines.items():
                self.engines[name] = self.engines.get(name, frozenset()) | engines
        self._paths.append(file.path)
        self._columns.append(_Column(number, datasets.difference(damage), digest))
        for dataset, rows in damage.items():
            sound = np.delete(np.arange(len(digest)), rows)
            self._columns.append(_Column(number, frozenset([dataset]), digest[sound], sound))

    def add_keys(self, file: CacheFile) -> None:
        """Enter the file's images with their measures, those that use rows of others, and its failures."""
        self.add_measures(file)
        self.records.add(file.images)
        self.records.add(file.image_group("taken"))
        for failure in file.failures:
            self.add_failure(failure)

    def add_measures(self, file: CacheFile) -> None:
        """Enter whose pixels the file has measures of."""
        images = file.images
        if images.measures is not None:
            known = np.flatnonzero(np.isfinite(images.measures).all(axis=1))
            self._columns.append(_Column(len(self._paths), MEASURES_OF, images.digest[known], known))
            self._paths.append(file.path)

    def add_failure(self, failure: Failure) -> None:
        """Enter a failure in place of what was known of its key."""
        self.failures[failure.key] = failure
        self._failed_at[failure.key] = len(self.records)

    def settle(self) -> None:
        """Keep the latest record or failure of each key, and drop the others."""
        keys = list(self.failures)
        at = self.records.find(hashes_of(keys))
        later = at >= np.array([self._failed_at[key] for key in keys], np.int64)
        self.records.drop(at[~later])
        for index in np.flatnonzero(later):
            del self.failures[keys[index]]

    def open_part(self, folder: Path, entry: PartEntry, thorough: bool) -> CacheFile:
        """Open a committed file of a parts folder (`thorough`: after comparing its sha256 with the log's)."""
        require_intact(folder, entry, thorough)
        return self.pool.get(folder / entry.name)

    def missing(self, digest: np.ndarray, datasets: Sequence[str]) -> np.ndarray:
        """Return (N, len(datasets)) bool, whether a digest of (N, 32) has no row in a dataset."""
        absent = np.ones((len(digest), len(datasets)), bool)
        for group, rows in self._lookup().items():
            inside = [number for number, dataset in enumerate(datasets) if dataset in group]
            if inside:
                found = np.flatnonzero(rows.runs.find(digest) >= 0)
                absent[found[:, None], np.array(inside)] = False
        return absent

    def has(self, digest: np.ndarray, datasets: Sequence[str]) -> np.ndarray:
        """Return (N,) bool, whether a digest of (N, 32) has a row in each dataset."""
        return np.logical_not(self.missing(digest, datasets).any(axis=1))

    def measures(self, digest: np.ndarray) -> np.ndarray | None:
        """Return the measures (N, 7) float32 of the images' pixels, NaN where unknown; None where all are."""
        files, row = self._locate(digest, MEASURED)
        if not len(digest) or (files == ABSENT).all():
            return None
        out = np.full((len(digest), len(MEASURES)), np.nan, np.float32)
        for number in np.unique(files[files != ABSENT]):
            inside = files == number
            measures = self.pool.get(self._paths[number]).images.measures
            assert measures is not None  # it had them when it was added
            out[inside] = measures[row[inside]]
        return out

    def unmeasured(self, digest: np.ndarray) -> np.ndarray:
        """Return (N,) bool, whether the pixels of an image were never measured."""
        return self.missing(digest, [MEASURED])[:, 0]

    def rows(self, node: NodeSpec, digest: np.ndarray, views: bool = False) -> FeatureRows:
        """Return the node's features, or its views, of digest (N, 32) in that order; rows may be absent."""
        dataset = node.dataset(views)
        files, row = self._locate(digest, dataset)
        shape = (len(row), *(node.views_shape if views else node.shape))
        return FeatureRows(
            self.pool, self._paths, dataset, files=files, row=row, shape=shape, dtype=node.dtype
        )

    def _locate(self, digest: np.ndarray, dataset: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the file number (N,) int32 and row (N,) int64 of each digest; ABSENT if it has none."""
        for column in self._columns:
            if dataset in column.datasets and column.rows is None and np.array_equal(column.digest, digest):
                return np.full(len(digest), column.file, np.int32), np.arange(len(digest))
        files, row = np.full(len(digest), ABSENT, np.int32), np.full(len(digest), ABSENT, np.int64)
        for group in [rows for datasets, rows in self._lookup().items() if dataset in datasets]:
            for start in range(0, len(digest), BLOCK):
                left = start + np.flatnonzero(files[start : start + BLOCK] == ABSENT)
                files[left], row[left] = group.locate(digest[left])
        return files, row

    def _lookup(self) -> dict[frozenset[str], _Group]:
        """Return where the rows of all files are, grouped by the datasets that the files hold."""
        with self._entering:
            new, self._columns = self._columns[self._entered :], self._columns[: self._entered]
            for column in new:
                self._groups.setdefault(column.datasets, _Group()).add(column)
            if len(new) <= MOST_COMPARED:
                self._columns += new
            self._entered = len(self._columns)
            return self._groups

    def close(self) -> None:
        """Close every file."""
        self.pool.close()


def _input_blocks(
    nodes: Sequence[str], widths: Sequence[int], images: int, covariates: int
) -> tuple[InputBlock, ...]:
    """Return the blocks of a sample's row. nodes : names, of rows of these widths side by side."""
    blocks: list[InputBlock] = []
    if not nodes:
        return ()
    names = [f"{node} of image {m + 1}" if images > 1 else node for m in range(images) for node in nodes]
    for name, width in zip(names, [*widths] * images, strict=True):
        start = blocks[-1].stop if blocks else 0
        blocks.append(InputBlock(name, start, start + width))
    if covariates:
        start = blocks[-1].stop if blocks else 0
        blocks.append(InputBlock(COVARIATES, start, start + covariates))
    return tuple(blocks)
