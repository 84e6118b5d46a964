"""Labels from a file of their own, joined to the samples of a cache: a new labelling needs no new extraction.

Shapes: S samples, M images per sample.
"""

from __future__ import annotations

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
    labels: str | Path | None,
    targets: Sequence[str] = (),
    group: str | None = None,
) -> tuple[SampleTable, list[str]]:
    """What `join_labels` gives where there is a file `labels`; else the samples as they are.

    Raises FitError as it does, and where a column of groups is named without a file.
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
    path: str | Path,
    targets: Sequence[str] = (),
    group: str | None = None,
) -> tuple[SampleTable, list[str]]:
    """The samples with the targets of a table in place of their own.

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
        wanted = ", ".join(KEY_COLUMNS)
        raise FitError(f"{path.name} has columns {', '.join(table)}; expected one of {wanted}.")
    row_of = _rows_by_sample(table[key], samples, image_keys, path.name, key)
    known = row_of >= 0
    wanted = tuple(targets) or tuple(column for column in table if column not in (*KEY_COLUMNS, group))
    if not wanted:
        raise FitError(f"{path.name} has no column of labels beside {', '.join(table)}.")
    joined = {name: _joined(table, name, row_of, known, path.name) for name in wanted}
    groups = samples.group
    if group is not None:
        column = _column(table, group, path.name)
        groups = np.array(
            [str(column[row]) if row >= 0 else f"\0{place}" for place, row in enumerate(row_of)], object
        )
    notes = []
    if unmatched := len(table[key]) - len(np.unique(row_of[known])):
        notes.append(f"{unmatched} of {len(table[key])} rows of {path.name} name no sample of the cache.")
    if missing := int((~known).sum()):
        notes.append(f"{missing} of {len(samples)} samples have no row in {path.name}.")
    return replace(samples, targets=joined, group=groups), notes


def _column(table: Table, name: str, file: str) -> list:
    if name not in table:
        raise FitError(f"{file} has no column {name!r}; it has {', '.join(table)}.")
    return table[name]


def _joined(table: Table, name: str, row_of: np.ndarray, known: np.ndarray, file: str) -> Target:
    """The target of one column; its classes are those of the whole file."""
    target = target_from_column(name, _column(table, name, file))
    unlabelled = {"class": -1, "multilabel": 255, "regression": np.nan}[target.kind]
    values = np.full((len(row_of), *target.values.shape[1:]), unlabelled, target.values.dtype)
    values[known] = target.values[row_of[known]]
    return replace(target, values=values)


def _rows_by_sample(
    cells: Sequence, samples: SampleTable, image_keys: np.ndarray, file: str, column: str
) -> np.ndarray:
    """(S,) row of the file that names each sample, −1 where none does."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(samples.key):
        places.setdefault(_plain(name), []).append(place)
    if samples.image.shape[1] == 1:
        for place, image in enumerate(samples.image[:, 0]):
            named = places.setdefault(_plain(image_keys[image]), [])
            if place not in named:
                named.append(place)
    row_of = np.full(len(samples), -1, np.int64)
    for row, cell in enumerate(cells):
        for place in places.get(_plain(str(cell)), ()):
            if row_of[place] >= 0:
                raise FitError(
                    f"{file} names {cell!r} twice, in {rows_named([int(row_of[place]) + 1, row + 1])}."
                )
            row_of[place] = row
    if (row_of < 0).all():
        raise FitError(
            f"The labels join to nothing: none of {len(cells)} cells of column {column!r} in {file} is a "
            f"sample or image of the cache. The file has {cells[0]!r}; the cache has {samples.key[0]!r}."
        )
    return row_of


def _plain(key: str) -> str:
    """A key as it is compared: composed letters, forward slashes, no leading "./"."""
    return unicodedata.normalize("NFC", str(key)).replace("\\", "/").removeprefix("./")
