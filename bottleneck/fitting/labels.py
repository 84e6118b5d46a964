"""Join labels from a file to the samples of a cache: new labels need no new extraction.

Shapes: S samples, M images per sample.
"""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bottleneck.data.config import LabelConfig
from bottleneck.data.table_file import (
    Table,
    find_column,
    folded,
    read_table,
    repeated_note,
    repeated_rows,
    rows_named,
    spelling_note,
)
from bottleneck.data.targets import AS_THEY_LOOK, target_from_column
from bottleneck.errors import FitError, Note, counted
from bottleneck.files import other_than_file
from bottleneck.samples import SampleTable, Target

KEY_COLUMNS = ("sample", "key", "image", "file_name")


def relabelled(
    samples: SampleTable,
    image_keys: np.ndarray,
    labels: str | os.PathLike[str] | None,
    targets: Sequence[str] = (),
    group: str | None = None,
    config: LabelConfig = AS_THEY_LOOK,
) -> tuple[SampleTable, list[Note]]:
    """Return the result of `join_labels` if a file `labels` is given, else the samples unchanged; and notes.

    One names the shards that the samples lack, where they are some shards of a source.

    Raises
    ------
    FitError
        As from `join_labels`; or a column of groups is named without a file.
    """
    lacking = samples.part_notes()
    if labels is not None:
        samples.require_finished()
        joined, notes = join_labels(samples, image_keys, labels, targets=targets, group=group, config=config)
        return joined, [*lacking, *notes]
    if group is not None:
        raise FitError(
            "--group names a column of a labels file.",
            "Give the file with --labels, or name the groups when extracting: `extract --group`.",
        )
    return samples, lacking


def join_labels(
    samples: SampleTable,
    image_keys: np.ndarray,
    path: str | os.PathLike[str],
    targets: Sequence[str] = (),
    group: str | None = None,
    config: LabelConfig = AS_THEY_LOOK,
) -> tuple[SampleTable, list[Note]]:
    """Return the samples with the targets of a table in place of theirs.

    Parameters
    ----------
    image_keys : (I,) keys of the cache's images.
    path : .csv, .jsonl or .parquet with a column sample, key, image or file_name that holds sample keys, or
        image keys where a sample is one image.
    targets : columns to take; all but the key, the group and the split where left out.
    group : column of groups, for folds.
    config : which targets are classes or regressions whatever their cells look like.

    Columns are found without regard to case and outer spaces.

    Returns
    -------
    samples : SampleTable
        Samples that the file does not name are unlabelled.
    notes : list of Note
        What was decided: columns, rows that name no sample, samples without a row.

    Raises
    ------
    FitError
        No such file or column, a sample named twice, or no row that names a sample.
    """
    path = Path(path)
    if not path.is_file():
        fault = f"{path} is {other_than_file(path)}; expected a table of labels." if path.exists() else ""
        raise FitError(fault or f"There is no labels file {path}.")
    table = read_table(path.name, path.read_bytes())
    keys = [column for name in KEY_COLUMNS if (column := find_column(table, name, path.name))]
    if not keys:
        known = ", ".join(KEY_COLUMNS)
        raise FitError(f"{path.name} has columns {', '.join(table)}; expected one of {known}.")
    key = keys[0]
    repeated = repeated_rows(table)
    row_of = _rows_by_sample(table[key], repeated, samples, image_keys, f"column {key!r} of {path.name}")
    has_row = row_of >= 0
    split = find_column(table, "split", path.name)
    others = (*keys, split, None if group is None else _found(table, group, path.name))
    wanted = tuple(targets) or tuple(_plain_name(column, table) for column in table if column not in others)
    if not wanted:
        raise FitError(f"{path.name} has no column of labels beside {', '.join(table)}.")
    notes = _column_notes(table, key, (*wanted, *filter(None, [group])), path.name)
    notes += repeated_note(repeated, path.name)
    if split is not None and split not in targets:
        message = f"Column {split!r} of {path.name} is not used: samples keep the splits of the cache."
        notes.append(Note("split-column-unused", message, True, {"column": split}))
    joined = {}
    for name in wanted:
        cells = table[_found(table, name, path.name)]
        target, told = target_from_column(name, cells, config, alone=len(wanted) == 1)
        joined[name] = in_order_of(target, row_of)
        notes += told
    groups = samples.group
    if group is not None:
        cells = table[_found(table, group, path.name)]
        groups = np.array(
            [str(cells[row]) if row >= 0 else f"\0{sample}" for sample, row in enumerate(row_of)], object
        )
    if unmatched := int((~repeated).sum()) - len(np.unique(row_of[has_row])):
        message = (
            f"{unmatched} of {counted(len(table[key]), 'row')} of {path.name} name no sample of the cache."
        )
        notes.append(Note("label-rows-without-sample", message, True, {"rows": unmatched}))
    if missing := int((~has_row).sum()):
        message = (
            f"{missing} of {counted(len(samples), 'sample')} {'has' if missing == 1 else 'have'} no row "
            f"in {path.name}; they count as unlabelled."
        )
        notes.append(Note("samples-without-label-row", message, True, {"samples": missing}))
    return replace(samples, targets=joined, group=groups), notes


def _found(table: Table, name: str, file: str) -> str:
    """Return the column's name in the table."""
    if (column := find_column(table, name, file)) is None:
        close = difflib.get_close_matches(name, table, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else ""
        raise FitError(f"{file} has no column {name!r}; it has {', '.join(table)}.", hint)
    return column


def _plain_name(column: str, table: Table) -> str:
    """Return the target that a column is called: without outer spaces, where this names no other column."""
    return column if column.strip() in table else column.strip()


def _column_notes(table: Table, key: str, names: Sequence[str], file: str) -> list[Note]:
    """Return a note for each column that is not written as it is named."""
    pairs = [(_found(table, name, file), name) for name in names]
    pairs += [] if key in KEY_COLUMNS else [(key, folded(key))]
    return [spelling_note(column, name, file) for column, name in pairs if column != name]


def in_order_of(target: Target, row_of: np.ndarray) -> Target:
    """Return the target of the rows that samples name, row_of (S,), −1 for none; the classes stay."""
    has_row = row_of >= 0
    unlabelled = {"class": -1, "multilabel": 255, "regression": np.nan}[target.kind]
    values = np.full((len(row_of), *target.values.shape[1:]), unlabelled, target.values.dtype)
    values[has_row] = target.values[row_of[has_row]]
    return replace(target, values=values)


def _rows_by_sample(
    cells: Sequence, repeated: np.ndarray, samples: SampleTable, image_keys: np.ndarray, column: str
) -> np.ndarray:
    """Return (S,) the row of the file that names each sample, −1 where none does."""
    samples_of: dict[str, list[int]] = {}
    for sample, name in enumerate(samples.key):
        samples_of.setdefault(plain_key(name), []).append(sample)
    if samples.image.shape[1] == 1:
        for sample, image in enumerate(samples.image[:, 0]):
            named = samples_of.setdefault(plain_key(image_keys[image]), [])
            if sample not in named:
                named.append(sample)
    row_of = np.full(len(samples), -1, np.int64)
    for row, cell in enumerate(cells):
        for sample in () if repeated[row] else samples_of.get(plain_key(str(cell)), ()):
            if row_of[sample] >= 0:
                raise FitError(
                    f"The {column} names {cell!r} twice, in {rows_named([int(row_of[sample]) + 1, row + 1])}."
                )
            row_of[sample] = row
    if (row_of < 0).all():
        raise FitError(
            f"The labels join to nothing: none of {counted(len(cells), 'cell')} of {column} is a "
            f"sample or image of the cache. The file has {cells[0]!r}; the cache has {samples.key[0]!r}."
        )
    return row_of


def plain_key(key: str) -> str:
    """Return a key as it is compared: composed letters, forward slashes, no leading "./"."""
    return unicodedata.normalize("NFC", str(key)).replace("\\", "/").removeprefix("./")
