"""The rows of a cache for other libraries: Arrow tables, and samples as torch's `DataLoader` takes them.

No torch is needed. A table has a row per sample, or per image if the cache has no samples.

Shapes: n rows or samples, M images per sample, D features, P covariates, L labels of a multi-label target.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from bottleneck.errors import CacheError
from bottleneck.samples import RowReader, SampleTable, Target

if TYPE_CHECKING:
    import pyarrow

FEATURES = "features/"  # before the name of a node
BLOCK_ROWS = 4096
Item = np.ndarray | tuple[np.ndarray, Any]


def blocks_of_table(
    images: np.ndarray,
    samples: SampleTable,
    features: Mapping[str, RowReader],
    rows: np.ndarray | None = None,
) -> Iterator[pyarrow.Table]:
    """Yield a table in blocks of one schema; one empty block if there is no row.

    A target or covariate that is named like another column has `label_` or `covariate_` before its name.

    Parameters
    ----------
    images : (I,) keys of the images
    samples : without samples the table has a row per image
    features : rows of the images by node, (I, …)
    rows : (n,) indices of samples, all by default
    """
    pyarrow = import_pyarrow()
    columns = {name: pyarrow.array(values) for name, values in _columns(images, samples).items()}
    if rows is None:
        rows = np.arange(len(columns["key"]))
    image = samples.image if len(samples) else np.arange(len(images))[:, None]
    for start in range(0, max(len(rows), 1), BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS]
        table = {name: values.take(pyarrow.array(block)) for name, values in columns.items()}
        for name, reader in features.items():
            values = reader.take(image[block].reshape(-1)).astype(np.float32, copy=False)
            width = int(np.prod(reader.shape[1:])) * image.shape[1]
            flat = pyarrow.array(values.reshape(-1))
            table[f"{FEATURES}{name}"] = pyarrow.FixedSizeListArray.from_arrays(flat, width)
        yield pyarrow.table(table)


def import_pyarrow(module: str = "pyarrow") -> Any:
    """Import pyarrow. It may import pandas, which warns that this package is not its own `bottleneck`."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Pandas requires version", UserWarning)
            import_module("pyarrow").array([""])
            return import_module(module)
    except ImportError:
        raise CacheError(
            "Arrow and Parquet need pyarrow, which is not installed.",
            "pip install 'bottleneck-features[parquet]'",
        ) from None


def _columns(images: np.ndarray, samples: SampleTable) -> dict[str, list[Any]]:
    """Return the columns except features, as Python values."""
    if not len(samples):
        return {"key": list(images), "image": list(images)}
    keys = images[samples.image]
    single = samples.image.shape[1] == 1
    columns: dict[str, list[Any]] = {
        "key": list(samples.key),
        "image": list(keys[:, 0]) if single else [list(row) for row in keys],
        "split": list(samples.split),
    }
    if samples.group is not None:
        columns["group"] = list(samples.group)
    names = target_columns(samples.targets, {*columns, "group"})
    columns |= {names[name]: _label_names(target) for name, target in samples.targets.items()}
    for name, values in zip(samples.covariate_names, samples.covariates.T, strict=True):
        columns[_free(name, "covariate_", {*columns, "group"})] = values.tolist()
    return columns


def target_columns(targets: Iterable[str], taken: Collection[str]) -> dict[str, str]:
    """Return the column of each target: its name, with `label_` before it where another column has that name.

    taken : names of other columns
    """
    names = set(targets)
    return {name: _free(name, "label_", {*taken, *names - {name}}) for name in names}


def _free(name: str, prefix: str, taken: Collection[str]) -> str:
    while name in taken or name.startswith(FEATURES):
        name = prefix + name
    return name


def _label_names(target: Target) -> list[Any]:
    """Return the labels by name, None if unlabelled."""
    if target.kind == "regression":
        return [None if np.isnan(value) else float(value) for value in target.values]
    if target.kind == "class":
        return [target.class_names[code] if code >= 0 else None for code in target.values]
    return [
        [name for name, bit in zip(target.class_names, row, strict=True) if bit] if labelled else None
        for row, labelled in zip(target.values, target.labelled, strict=True)
    ]


class CacheDataset:
    """Samples of a cache with random access: `dataset[i]` is a feature row, and its target if one is named.

    It is a map-style dataset: `DataLoader`, `Subset` and `random_split` take it. It holds no open file. Each
    process opens the cache for itself at its first access, so that workers started by fork, forkserver or
    spawn read rows of their own. A whole batch is read at once.

    An item is (features, target), or the features alone without a target:

    - features: float32 (M·D + P,); of a map (C, H, W), or (M, C, H, W) for several images.
    - target: the class code, an int; float32 (L,) of 0 and 1; or a float.

    Parameters
    ----------
    open_rows : picklable; opens the cache and returns the rows of all its samples.
        Raises CacheError if the file is no longer the one that the dataset was made of.
    keys : (n,) object array of str, the samples' names.
    rows : (n,) which of all samples these are.
    target : of these samples, all labelled; None for features alone.
    left_out : number of samples of the split without a label.
    """

    def __init__(
        self,
        open_rows: Callable[[], RowReader],
        keys: np.ndarray,
        rows: np.ndarray,
        target: Target | None,
        left_out: int,
    ) -> None:
        self.keys, self.left_out = keys, left_out
        self.class_names = () if target is None else target.class_names
        self._open_rows, self._rows, self._target = open_rows, rows, target
        self._opened: tuple[int, RowReader] | None = None  # process, and what it opened

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Item:
        """Return one item; IndexError beyond the last."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"The dataset has {len(self)} samples; there is no number {index}.")
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Return the items of a batch, which `DataLoader` asks for at once."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), self._open_rows()
        at = np.asarray(indices, np.int64)
        features = np.asarray(self._opened[1].take(self._rows[at]), np.float32)
        if self._target is None:
            return list(features)
        values = self._target.values[at]
        multilabel = self._target.kind == "multilabel"
        return list(zip(features, values.astype(np.float32) if multilabel else values.tolist(), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}
