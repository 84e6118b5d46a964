"""Turn a manifest, a table with a row per sample, into samples.

Rows are counted from 1, a header not included.

Shapes: S samples, M images per sample, P covariates.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from bottleneck.data.config import ReadConfig
from bottleneck.data.splits import ALIASES, split_named
from bottleneck.data.table_file import Table, printable, rows_named, storable
from bottleneck.data.targets import target_from_column, to_number
from bottleneck.errors import SourceError
from bottleneck.samples import SampleTable

IMAGE_DEFAULTS = ("image", "file_name")


def manifest_table(
    table: Table,
    config: ReadConfig,
    name: str,
    root: str,
    missing: Callable[[Sequence[str]], dict[str, str]],
) -> tuple[list[str], SampleTable, dict[str, str]]:
    """Return the images and samples of a manifest.

    Parameters
    ----------
    table : dict
        From `read_table`.
    config : ReadConfig
    name, root : str
        The manifest's file name, and its folder, to which paths are relative.
    missing : callable
        Returns the keys that cannot be read, with the reason.

    Returns
    -------
    images : list of str
        Sorted keys of the images that the samples refer to.
    samples : SampleTable
        In the manifest's order; without samples that lack an image. Codes cover the whole manifest.
    absent : dict of str to str
        Images that cannot be read, with the reason.

    Raises
    ------
    SourceError
        A column is missing or has invalid cells; rows are named.
    """
    columns = _present_columns(table, config, name)
    keys = list(zip(*(_image_keys(table, column, root) for column in columns.image_columns), strict=True))
    sample_keys = _sample_keys(table, columns.sample_column, keys)
    targets = {label: target_from_column(label, table[label]) for label in columns.label_columns}
    absent = _absent({key for row in keys for key in row}, missing)
    whole = np.array([absent.keys().isdisjoint(row) for row in keys], bool)
    images = sorted({key for row, complete in zip(keys, whole, strict=True) if complete for key in row})
    index = {key: number for number, key in enumerate(images)}
    samples = SampleTable(
        key=np.array(sample_keys, object),
        image=np.array([[index.get(key, -1) for key in row] for row in keys], np.int64),
        split=_splits(table, columns.split_column, len(keys)),
        targets=targets,
        covariates=_covariates(table, columns.covariate_columns, len(keys)),
        covariate_names=columns.covariate_columns,
        group=_names(table, columns.group_column, "group") if columns.group_column else None,
    )
    return images, samples.take(whole), {printable(key): reason for key, reason in absent.items()}


def _absent(keys: set[str], missing: Callable[[Sequence[str]], dict[str, str]]) -> dict[str, str]:
    """Return the images that are known to be unreadable without reading any, with the reason."""
    absent = {key: "has a name that is not valid UTF-8" for key in keys if not storable(key)}
    return dict(sorted((absent | missing([key for key in keys - absent.keys() if "://" not in key])).items()))


def _present_columns(table: Table, config: ReadConfig, name: str) -> ReadConfig:
    """Return `config` with default columns filled in; SourceError where a column is not in the table."""
    images = config.image_columns or tuple(column for column in IMAGE_DEFAULTS if column in table)[:1]
    if not images:
        raise SourceError(
            f"The manifest {name} has columns {', '.join(table)}; expected 'image' or 'file_name'.",
            "Name the column with --image-column.",
        )
    labels = config.label_columns or (("label",) if "label" in table else ())
    split = config.split_column
    if split is None and "split" in table and all(_names_split(cell) for cell in table["split"]):
        split = "split"
    one_each = (split, config.group_column, config.sample_column)
    for column in filter(None, (*images, *labels, *config.covariate_columns, *one_each)):
        if column not in table:
            close = difflib.get_close_matches(column, table, n=1)
            raise SourceError(
                f"The manifest {name} has no column {column!r}; it has {', '.join(table)}.",
                f"Did you mean {close[0]!r}?" if close else "",
            )
    return replace(config, image_columns=images, label_columns=labels, split_column=split)


def _image_keys(table: Table, column: str, root: str) -> list[str]:
    """Return the cells of an image column as keys: without "./", relative where they are below the root."""
    cells = table[column]
    if bad := [row for row, cell in enumerate(cells, 1) if not isinstance(cell, str) or not cell]:
        raise SourceError(f"Column {column!r} names no image in {rows_named(bad)}; expected a path.")
    return [_relative(cell, root) for cell in cells]


def _relative(path: str, root: str) -> str:
    """Return the key of a path. ".." is not resolved: after a link to a folder it means another folder."""
    path = path.removeprefix(root.rstrip("/") + "/")
    if "://" in path:
        return path
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return ("/" if path.startswith("/") else "") + "/".join(parts)


def _sample_keys(table: Table, column: str | None, images: list[tuple[str, ...]]) -> list[str]:
    """Return unique names of the samples: from a column, or from their images."""
    keys = ["|".join(row) for row in images] if column is None else list(_names(table, column, "sample"))
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys, 1):
        rows.setdefault(key, []).append(row)
    twice = [key for key, numbers in rows.items() if len(numbers) > 1]
    if twice:
        more = f", and {len(twice) - 1} more keys" if len(twice) > 1 else ""
        raise SourceError(
            f"Duplicate sample keys: {twice[0]!r} in {rows_named(rows[twice[0]])}{more}.",
            "Remove the repeated rows, or name a column of unique keys with --sample-column.",
        )
    return keys


def _names(table: Table, column: str, what: str) -> np.ndarray:
    """Return the cells of a column as (S,) object array of str; SourceError unless every row has a name."""
    cells = table[column]
    good = [cell is not None and cell != "" and storable(str(cell)) for cell in cells]
    if bad := [row for row, is_good in enumerate(good, 1) if not is_good]:
        raise SourceError(
            f"Column {column!r} names no {what} in {rows_named(bad)}; expected one in each row."
        )
    return np.array([str(cell) for cell in cells], object)


def _names_split(cell: object) -> bool:
    return isinstance(cell, str) and split_named(cell) is not None


def _splits(table: Table, column: str | None, rows: int) -> np.ndarray:
    """Return the (S,) object array of "train", "val" or "test"."""
    if column is None:
        return np.full(rows, "train", object)
    cells = table[column]
    if bad := [row for row, cell in enumerate(cells, 1) if not _names_split(cell)]:
        raise SourceError(
            f"Column {column!r} has {cells[bad[0] - 1]!r} in {rows_named(bad)}; "
            f"expected one of {', '.join(ALIASES)}."
        )
    return np.array([split_named(cell) for cell in cells], object)


def _covariates(table: Table, names: tuple[str, ...], rows: int) -> np.ndarray:
    """Return (S, P) float64, all finite."""
    values = np.zeros((rows, len(names)))
    for column, name in enumerate(names):
        numbers = [to_number(cell) for cell in table[name]]
        bad = [row for row, number in enumerate(numbers, 1) if number is None or not math.isfinite(number)]
        if bad:
            raise SourceError(
                f"Covariate {name!r} is {table[name][bad[0] - 1]!r} in {rows_named(bad)}; "
                "expected finite numbers.",
                "Fill the values in, or leave the covariate out.",
            )
        values[:, column] = numbers
    return values
