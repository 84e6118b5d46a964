"""Tables of samples: .csv, .jsonl and .parquet files whose columns name images, labels, splits, groups.

Rows are counted from 1, a header not included.

Shapes: S samples, M images per sample, P covariates.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bottleneck.data.folder import printable
from bottleneck.data.splits import ALIASES, split_named
from bottleneck.data.targets import rows_named, target_from_column, to_number
from bottleneck.errors import SourceError
from bottleneck.samples import SampleTable

SUFFIXES = (".csv", ".jsonl", ".parquet")
IMAGE_DEFAULTS = ("image", "file_name")

Table = dict[str, list]  # column name -> S cells; None where a cell is missing


@dataclass(frozen=True)
class Columns:
    """Which columns of a manifest mean what.

    Parameters
    ----------
    images : tuple of M str
        Default: "image", else "file_name".
    labels : tuple of str
        Each a target of its name. Default: "label", where there is one.
    split : str, optional
        Default: "split", where there is one that names nothing but splits; without one all is train.
    group, sample : str, optional
        Sample keys are the image's key by default (several: joined by "|").
    covariates : tuple of P str
    """

    images: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    split: str | None = None
    group: str | None = None
    sample: str | None = None
    covariates: tuple[str, ...] = ()

    @property
    def given(self) -> bool:
        """True where any column was named by the user."""
        return self != Columns()


def read_table(name: str, data: bytes) -> Table:
    """Read a manifest.

    Parameters
    ----------
    name : str
        File name; its suffix says the format.
    data : bytes
        The file.

    Raises
    ------
    SourceError
        Not such a file; where and why.
    """
    if name.lower().endswith(".parquet"):
        return _read_parquet(name, data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SourceError(f"The manifest {name} is not UTF-8 text (line {line}): {error.reason}.") from error
    table = _read_csv(name, text) if name.lower().endswith(".csv") else _read_jsonl(name, text)
    if not table or not next(iter(table.values())):
        raise SourceError(f"The manifest {name} has no rows.")
    return table


def _read_csv(name: str, text: str) -> Table:
    """Cells are text, None where empty."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        rows = [row for row in reader if row]
    except csv.Error as error:
        raise SourceError(f"The manifest {name} is not CSV (line {reader.line_num}): {error}.") from error
    if len(set(header)) < len(header):
        twice = next(column for column in header if header.count(column) > 1)
        raise SourceError(f"The manifest {name} has two columns named {twice!r}.")
    if odd := [number for number, row in enumerate(rows, 1) if len(row) != len(header)]:
        raise SourceError(
            f"The manifest {name} has {len(header)} columns, "
            f"but {len(rows[odd[0] - 1])} cells in {rows_named(odd)}."
        )
    return {column: [row[place] or None for row in rows] for place, column in enumerate(header)}


def _read_jsonl(name: str, text: str) -> Table:
    """One JSON object a line; cells are JSON values."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"The manifest {name} is not JSON in line {number}: {error}.") from error
        if not isinstance(row, dict):
            raise SourceError(
                f"The manifest {name} has a {type(row).__name__} in line {number}, not an object."
            )
        rows.append(row)
    return {
        column: [row.get(column) for row in rows]
        for column in dict.fromkeys(key for row in rows for key in row)
    }


def _read_parquet(name: str, data: bytes) -> Table:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise SourceError(
            f"The manifest {name} is Parquet, and pyarrow is not installed.",
            "Run: pip install 'bottleneck-features[parquet]'",
        ) from error
    try:
        return parquet.read_table(arrow.BufferReader(data)).to_pydict()
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise SourceError(f"The manifest {name} cannot be read as Parquet: {error}.") from error


def manifest_table(
    table: Table,
    columns: Columns,
    name: str,
    root: str,
    missing: Callable[[Sequence[str]], dict[str, str]],
) -> tuple[list[str], SampleTable, dict[str, str]]:
    """Make samples of a manifest's rows.

    Parameters
    ----------
    table : dict
        From `read_table`.
    columns : Columns
    name, root : str
        The manifest's file name, and its folder, to which paths are relative.
    missing : callable
        Says which of the keys cannot be read, and why.

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
        A column is not there or holds what it cannot mean; rows are named.
    """
    names = _present(table, columns, name)
    keys = [_image_keys(table, column, root) for column in names.images]
    sample_keys = _sample_keys(table, names.sample, keys)
    targets = {label: target_from_column(label, table[label]) for label in names.labels}
    S = len(sample_keys)
    wanted = sorted({key for column in keys for key in column})
    absent = {
        key: "has a name that is not valid UTF-8" for key in wanted if printable(key) != key or "\0" in key
    }
    absent |= missing([key for key in wanted if key not in absent and "://" not in key])
    whole = np.array([all(column[row] not in absent for column in keys) for row in range(S)], bool)
    images = sorted({column[row] for column in keys for row in np.flatnonzero(whole)})
    place = {key: number for number, key in enumerate(images)} | dict.fromkeys(absent, -1)
    samples = SampleTable(
        key=np.array(sample_keys, object),
        image=np.array([[place.get(key, -1) for key in row] for row in zip(*keys, strict=True)], np.int64),
        split=_splits(table, names.split),
        targets=targets,
        covariates=_covariates(table, names.covariates),
        covariate_names=names.covariates,
        group=_groups(table, names.group),
    )
    return images, samples.take(whole), {printable(key): reason for key, reason in absent.items()}


def _present(table: Table, columns: Columns, name: str) -> Columns:
    """The columns with defaults filled in, all of them in the table."""
    images = columns.images or tuple(column for column in IMAGE_DEFAULTS if column in table)[:1]
    if not images:
        raise SourceError(
            f"The manifest {name} has columns {', '.join(table)}; expected 'image' or 'file_name'.",
            "Name the column with --image-column.",
        )
    labels = columns.labels or (("label",) if "label" in table else ())
    split = columns.split
    if split is None and "split" in table and all(_names_split(cell) for cell in table["split"]):
        split = "split"
    chosen = Columns(images, labels, split, columns.group, columns.sample, columns.covariates)
    for column in (*images, *labels, *chosen.covariates, chosen.split, chosen.group, chosen.sample):
        if column is not None and column not in table:
            close = difflib.get_close_matches(column, table, n=1)
            raise SourceError(
                f"The manifest {name} has no column {column!r}; it has {', '.join(table)}.",
                f"Did you mean {close[0]!r}?" if close else "",
            )
    return chosen


def _image_keys(table: Table, column: str, root: str) -> list[str]:
    """The cells of an image column as keys: without "./", and relative where they lie below the root."""
    cells = table[column]
    if bad := [row for row, cell in enumerate(cells, 1) if not isinstance(cell, str) or not cell]:
        raise SourceError(f"Column {column!r} names no image in {rows_named(bad)}; expected a path.")
    return [cell if "://" in cell else _normal(cell, root) for cell in cells]


def _normal(path: str, root: str) -> str:
    """ ".." stays as it is: beyond a link it means something else than its text."""
    path = path.removeprefix(root.rstrip("/") + "/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return ("/" if path.startswith("/") else "") + "/".join(parts)


def _sample_keys(table: Table, column: str | None, images: list[list[str]]) -> list[str]:
    """Unique names of the samples."""
    if column is None:
        keys = ["|".join(row) for row in zip(*images, strict=True)]
    else:
        if bad := [row for row, cell in enumerate(table[column], 1) if cell is None or cell == ""]:
            raise SourceError(f"Column {column!r} names no sample in {rows_named(bad)}.")
        keys = [str(cell) for cell in table[column]]
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys, 1):
        rows.setdefault(key, []).append(row)
    if twice := {key: numbers for key, numbers in rows.items() if len(numbers) > 1}:
        key, numbers = next(iter(twice.items()))
        raise SourceError(
            f"Duplicate sample keys: {key!r} in {rows_named(numbers)}"
            + (f", and {len(twice) - 1} other keys." if len(twice) > 1 else "."),
            "Remove the repeated rows, or name a column of unique keys with --sample-column.",
        )
    return keys


def _names_split(cell) -> bool:
    return isinstance(cell, str) and split_named(cell) is not None


def _splits(table: Table, column: str | None) -> np.ndarray:
    if column is None:
        return np.full(len(next(iter(table.values()))), "train", object)
    cells = table[column]
    if bad := [row for row, cell in enumerate(cells, 1) if not _names_split(cell)]:
        raise SourceError(
            f"Column {column!r} has {cells[bad[0] - 1]!r} in {rows_named(bad)}; "
            f"expected one of {', '.join(ALIASES)}."
        )
    return np.array([split_named(cell) for cell in cells], object)


def _groups(table: Table, column: str | None) -> np.ndarray | None:
    if column is None:
        return None
    if bad := [row for row, cell in enumerate(table[column], 1) if cell is None or cell == ""]:
        raise SourceError(
            f"Column {column!r} names no group in {rows_named(bad)}; expected one for each sample."
        )
    return np.array([str(cell) for cell in table[column]], object)


def _covariates(table: Table, names: tuple[str, ...]) -> np.ndarray:
    """(S, P) float64, all finite."""
    columns = []
    for name in names:
        numbers = [to_number(cell) for cell in table[name]]
        bad = [row for row, number in enumerate(numbers, 1) if number is None or not math.isfinite(number)]
        if bad:
            raise SourceError(
                f"Covariate {name!r} is {table[name][bad[0] - 1]!r} in {rows_named(bad)}; "
                "expected finite numbers.",
                "Fill the values in, or leave the covariate out.",
            )
        columns.append(numbers)
    rows = len(next(iter(table.values())))
    return np.array(columns, float).T if columns else np.zeros((rows, 0))
