"""Join labels from a file to the samples of a cache: new labels need no new extraction.

Shapes: S samples, M images per sample.
"""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bottleneck.data.config import LabelConfig
from bottleneck.data.table_file import (
    Table,
    find_column,
    folded,
    is_blank,
    read_table,
    repeated_note,
    repeated_rows,
    rows_named,
    spelling_note,
)
from bottleneck.data.targets import AS_THEY_LOOK, target_from_column
from bottleneck.errors import FitError, Note, counted, verb
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
    table = _LabelTable.read(Path(path))
    row_of = table.rows_of(samples, image_keys)
    wanted = tuple(targets) or table.label_columns(group)
    notes = [*table.spelling_notes((*wanted, *filter(None, [group]))), *table.read_notes(targets)]
    joined = {}
    for name in wanted:
        target, told = target_from_column(name, table.cells(name), config, alone=len(wanted) == 1)
        joined[name] = in_order_of(target, row_of)
        notes += told
    groups = samples.group
    if group is not None:
        cells = table.groups(group, row_of)
        groups = np.array(
            [str(cells[row]) if row >= 0 else f"\0{sample}" for sample, row in enumerate(row_of)], object
        )
    return replace(samples, targets=joined, group=groups), [*notes, *table.unmatched_notes(row_of)]


@dataclass(frozen=True)
class _LabelTable:
    """A table whose rows name samples.

    file : its name. columns : cells by name. keys : names of columns that may name samples; the first does.
    repeated : (rows,) bool, rows that equal an earlier one.
    """

    file: str
    columns: Table
    keys: list[str]
    repeated: np.ndarray

    @classmethod
    def read(cls, path: Path) -> _LabelTable:
        """Read a file. Raises FitError where there is none, or no column names samples."""
        if not path.is_file():
            fault = f"{path} is {other_than_file(path)}; expected a table of labels." if path.exists() else ""
            raise FitError(fault or f"There is no labels file {path}.")
        columns = read_table(path.name, path.read_bytes())
        keys = [column for name in KEY_COLUMNS if (column := find_column(columns, name, path.name))]
        if not keys:
            known = ", ".join(KEY_COLUMNS)
            raise FitError(f"{path.name} has columns {', '.join(columns)}; expected one of {known}.")
        return cls(path.name, columns, keys, repeated_rows(columns))

    def column(self, name: str) -> str:
        """Return the name in the table of the column that is called `name`."""
        if (column := find_column(self.columns, name, self.file)) is None:
            close = difflib.get_close_matches(name, self.columns, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else ""
            raise FitError(f"{self.file} has no column {name!r}; it has {', '.join(self.columns)}.", hint)
        return column

    def cells(self, name: str) -> Sequence:
        """Return the cells of the column that is called `name`."""
        return self.columns[self.column(name)]

    def groups(self, name: str, row_of: np.ndarray) -> Sequence:
        """Return the cells of a column of groups; FitError where a row that names a sample has a blank one.

        Samples without a group would be one group. row_of : (S,) rows that name samples, −1 for none.
        """
        cells = self.cells(name)
        if blank := [row + 1 for row in np.unique(row_of[row_of >= 0]).tolist() if is_blank(cells[row])]:
            raise FitError(
                f"Column {self.column(name)!r} of {self.file} names no group in {rows_named(blank)}; "
                "expected one in each row.",
                "Fill them in: a sample that is like no other one has a group of its own.",
            )
        return cells

    @property
    def split(self) -> str | None:
        """The column of splits, which is not used."""
        return find_column(self.columns, "split", self.file)

    def label_columns(self, group: str | None) -> tuple[str, ...]:
        """Return the targets that the columns are called, all but the key, the split and the groups.

        A target is called as its column without outer spaces, where this names no other column.
        """
        others = (*self.keys, self.split, None if group is None else self.column(group))
        columns = [column for column in self.columns if column not in others]
        if not columns:
            raise FitError(f"{self.file} has no column of labels beside {', '.join(self.columns)}.")
        return tuple(column if column.strip() in self.columns else column.strip() for column in columns)

    def rows_of(self, samples: SampleTable, image_keys: np.ndarray) -> np.ndarray:
        """Return (S,) the row that names each sample, −1 where none does."""
        cells = self.columns[self.keys[0]]
        where = f"column {self.keys[0]!r} of {self.file}"
        samples_of: dict[str, list[int]] = {}
        for sample, name in enumerate(samples.key):
            samples_of.setdefault(plain_key(name), []).append(sample)
        if samples.image.shape[1] == 1:
            for sample, image in enumerate(samples.image[:, 0]):
                named = samples_of.setdefault(plain_key(image_keys[image]), [])
                if sample not in named:
                    named.append(sample)
        row_of = np.full(len(samples), -1, np.int64)
        for row in np.flatnonzero(~self.repeated).tolist():
            for sample in samples_of.get(plain_key(str(cells[row])), ()):
                if row_of[sample] >= 0:
                    rows = rows_named([int(row_of[sample]) + 1, row + 1])
                    raise FitError(f"The {where} names {cells[row]!r} twice, in {rows}.")
                row_of[sample] = row
        if (row_of < 0).all():
            example = repr(samples.key[0]) if len(samples) else "no samples"
            others = "".join(f"Remove that column to join by {name!r}." for name in self.keys[1:2])
            raise FitError(
                f"The labels join to nothing: none of {counted(len(cells), 'cell')} of {where} is a "
                f"sample or image of the cache. The file has {cells[0]!r}; the cache has {example}.",
                others or "Name samples as the cache does: in full, with their folders.",
            )
        return row_of

    def spelling_notes(self, names: Sequence[str]) -> list[Note]:
        """Return a note for each column that is not written as it is named."""
        key = self.keys[0]
        pairs = [(self.column(name), name) for name in names]
        pairs += [] if key in KEY_COLUMNS else [(key, folded(key))]
        return [spelling_note(column, name, self.file) for column, name in pairs if column != name]

    def read_notes(self, targets: Sequence[str]) -> list[Note]:
        """Return notes on rows that repeat others, and on splits. targets : columns that the user named."""
        notes, split = repeated_note(self.repeated, self.file), self.split
        if split is not None and split not in targets:
            message = f"Column {split!r} of {self.file} is not used: samples keep the splits of the cache."
            notes.append(Note("split-column-unused", message, True, {"column": split}))
        return notes

    def unmatched_notes(self, row_of: np.ndarray) -> list[Note]:
        """Return notes on rows without a sample and on samples without a row. row_of : (S,), −1 for none."""
        notes, named = [], row_of[row_of >= 0]
        if unmatched := int((~self.repeated).sum()) - len(np.unique(named)):
            rows = counted(len(self.repeated), "row")
            name = verb(unmatched, "names", "name")
            message = f"{unmatched} of {rows} of {self.file} {name} no sample of the cache."
            notes.append(Note("label-rows-without-sample", message, True, {"rows": unmatched}))
        if missing := len(row_of) - len(named):
            have = verb(missing, "has", "have")
            samples = counted(len(row_of), "sample")
            message = f"{missing} of {samples} {have} no row in {self.file}; they count as unlabelled."
            notes.append(Note("samples-without-label-row", message, True, {"samples": missing}))
        return notes


def in_order_of(target: Target, row_of: np.ndarray) -> Target:
    """Return the target of the rows that samples name, row_of (S,), −1 for none; the classes stay."""
    has_row = row_of >= 0
    unlabelled = {"class": -1, "multilabel": 255, "regression": np.nan}[target.kind]
    values = np.full((len(row_of), *target.values.shape[1:]), unlabelled, target.values.dtype)
    values[has_row] = target.values[row_of[has_row]]
    return replace(target, values=values)


def plain_key(key: str) -> str:
    """Return a key as it is compared: composed letters, forward slashes, no leading "./"."""
    return unicodedata.normalize("NFC", str(key)).replace("\\", "/").removeprefix("./")
