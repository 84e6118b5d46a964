"""A cache as Arrow tables: a row per sample, or per image if the cache has no samples.

Shapes: n rows, M images per sample, D features.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from bottleneck.errors import CacheError
from bottleneck.samples import RowReader, SampleTable, Target

if TYPE_CHECKING:
    import pyarrow

FEATURES = "features/"  # before the name of a node
BLOCK_ROWS = 4096


def blocks_of_table(
    images: np.ndarray,
    samples: SampleTable,
    features: Mapping[str, RowReader],
    rows: np.ndarray | None = None,
) -> Iterator[pyarrow.Table]:
    """Yield a table in blocks of one schema; one empty block if there is no row.

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
    columns |= {name: _label_names(target) for name, target in samples.targets.items()}
    for name, values in zip(samples.covariate_names, samples.covariates.T, strict=True):
        columns[name] = values.tolist()
    return columns


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
