"""Join labels from a file to the samples of a cache: new labels need no new extraction.

Shapes: S samples, M images per sample.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bottleneck.data.table_file import Table, read_table, rows_named
from bottleneck.data.targets import target_from_column
from bottleneck.errors import FitError
from bottleneck.samples import SampleTable, Target

KEY_COLUMNS = ("sample", "key", "image", "file_name")


def relabelled(
    samples: SampleTable,
    image_keys: np.ndarray,
    labels: str | os.PathLike[str] | None,
    targets: Sequence[str] = (),
    group: str | None = None,
) -> tuple[SampleTable, list[str]]:
    """Return the result of `join_labels` if a file `labels` is given, else the samples unchanged.

    Raises
    ------
    FitError
        As from `join_labels`; or a column of groups is named without a file.
    """
    if labels is not None:
        return join_labels(samples, image_keys, labels, targets, group)
    if group is not None:
        raise FitError(
            "--group names a column of a labels file.",
            "Give the file with --labels, or name the groups when extracting: `extract --group`.",
        )
    return samples, []


def join_labels(
    samples: SampleTable,
    image_keys: np.ndarray,
    path: str | os.PathLike[str],
    targets: Sequence[str] = (),
    group: str | None = None,
) -> tuple[SampleTable, list[str]]:
    """Return the samples with the targets of a table in place of theirs.

    Parameters
    ----------
    image_keys : (I,) keys of the cache's images.
    path : .csv, .jsonl or .parquet with a column sample, key, image or file_name that holds sample keys, or
        image keys where a sample is one image.
    targets : columns to take; all but the key and the group where left out.
    group : column of groups, for folds.

    Returns
    -------
    samples : SampleTable
        Samples that the file does not name are unlabelled.
    notes : list of str
        What a user has to know: rows that name no sample, samples without a row.

    Raises
    ------
    FitError
        No such file or column, a sample named twice, or no row that names a sample.
    """
    path = Path(path)
    if not path.is_file():
        raise FitError(f"There is no labels file {path}.")
    table = read_table(path.name, path.read_bytes())
    key = next((column for column in KEY_COLUMNS if column in table), None)
    if key is None:
        known = ", ".join(KEY_COLUMNS)
        raise FitError(f"{path.name} has columns {', '.join(table)}; expected one of {known}.")
    row_of = _rows_by_sample(table[key], samples, image_keys, path.name, key)
    has_row = row_of >= 0
    wanted = tuple(targets) or tuple(column for column in table if column not in (*KEY_COLUMNS, group))
    if not wanted:
        raise FitError(f"{path.name} has no column of labels beside {', '.join(table)}.")
    joined = {name: _joined(table, name, row_of, has_row, path.name) for name in wanted}
    groups = samples.group
    if group is not None:
        column = _column(table, group, path.name)
        groups = np.array(
            [str(column[row]) if row >= 0 else f"\0{sample}" for sample, row in enumerate(row_of)], object
        )
    notes = []
    if unmatched := len(table[key]) - len(np.unique(row_of[has_row])):
        notes.append(f"{unmatched} of {len(table[key])} rows of {path.name} name no sample of the cache.")
    if missing := int((~has_row).sum()):
        notes.append(f"{missing} of {len(samples)} samples have no row in {path.name}.")
    return replace(samples, targets=joined, group=groups), notes


def _column(table: Table, name: str, file: str) -> list:
    if name not in table:
        raise FitError(f"{file} has no column {name!r}; it has {', '.join(table)}.")
    return table[name]


def _joined(table: Table, name: str, row_of: np.ndarray, has_row: np.ndarray, file: str) -> Target:
    """Return the target of one column; its classes are those of the whole file."""
    target = target_from_column(name, _column(table, name, file))
    unlabelled = {"class": -1, "multilabel": 255, "regression": np.nan}[target.kind]
    values = np.full((len(row_of), *target.values.shape[1:]), unlabelled, target.values.dtype)
    values[has_row] = target.values[row_of[has_row]]
    return replace(target, values=values)


def _rows_by_sample(
    cells: Sequence, samples: SampleTable, image_keys: np.ndarray, file: str, column: str
) -> np.ndarray:
    """Return (S,) the row of the file that names each sample, −1 where none does."""
    samples_of: dict[str, list[int]] = {}
    for sample, name in enumerate(samples.key):
        samples_of.setdefault(_plain(name), []).append(sample)
    if samples.image.shape[1] == 1:
        for sample, image in enumerate(samples.image[:, 0]):
            named = samples_of.setdefault(_plain(image_keys[image]), [])
            if sample not in named:
                named.append(sample)
    row_of = np.full(len(samples), -1, np.int64)
    for row, cell in enumerate(cells):
        for sample in samples_of.get(_plain(str(cell)), ()):
            if row_of[sample] >= 0:
                raise FitError(
                    f"{file} names {cell!r} twice, in {rows_named([int(row_of[sample]) + 1, row + 1])}."
                )
            row_of[sample] = row
    if (row_of < 0).all():
        raise FitError(
            f"The labels join to nothing: none of {len(cells)} cells of column {column!r} in {file} is a "
            f"sample or image of the cache. The file has {cells[0]!r}; the cache has {samples.key[0]!r}."
        )
    return row_of


def _plain(key: str) -> str:
    """Return a key as it is compared: composed letters, forward slashes, no leading "./"."""
    return unicodedata.normalize("NFC", str(key)).replace("\\", "/").removeprefix("./")
