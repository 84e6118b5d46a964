"""Turn a manifest, a table with a row per sample, into samples.

Rows are counted from 1, a header not included. Columns are found by name, without regard to case and outer
spaces. Whatever is decided for the user is a note.

Shapes: S samples, M images per sample, P covariates.
"""

from __future__ import annotations

import difflib
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bottleneck.data.class_names import lost_classes
from bottleneck.data.config import ReadConfig
from bottleneck.data.listing import is_image
from bottleneck.data.remembered import ROLES, recalled
from bottleneck.data.splits import ALIASES, merged_notes, split_named
from bottleneck.data.table_file import (
    Table,
    as_argument,
    encodable,
    find_column,
    folded,
    is_blank,
    repeated_note,
    repeated_rows,
    rows_named,
    spelling_note,
    storable,
    to_number,
)
from bottleneck.data.targets import target_from_column
from bottleneck.errors import Note, SourceError, counted, listed, verb
from bottleneck.samples import SampleTable

NONE_READ = "none of their images can be read"
IMAGE_DEFAULTS = ("image", "file_name")
# Names under which others keep their labels, images and splits: offered where the default is missing.
LABEL_NAMES = ("label", "class", "category", "species", "target", "diagnosis", "tag", "y")
SPLIT_NAMES = ("partition", "subset", "phase", "data_split", "train_test", "is_train", "is_test", "is_val")
IMAGE_NAMES = ("image", "file", "path", "photo", "picture", "img", "url")
Columns = dict[str, tuple[str, ...]]  # role -> the columns that serve it, by their names in the file


@dataclass(frozen=True)
class Manifest:
    """What a manifest contains.

    images : sorted keys of the images that the samples refer to.
    samples : in the manifest's order, without samples that lack an image. Codes cover the whole manifest.
    absent : images that cannot be read, with the reason.
    columns : the columns in use by role ("image", "label", "split", "group", "sample", "covariate"), and
        the "unused" ones.
    notes : what was decided.
    cells : where inputs alone are read, the cells of the samples in each column beside those of images.
    """

    images: list[str]
    samples: SampleTable
    absent: dict[str, str]
    columns: Columns
    notes: tuple[Note, ...]
    cells: Table


def read_manifest(
    table: Table,
    config: ReadConfig,
    name: str,
    root: str,
    missing: Callable[[Sequence[str]], dict[str, str]],
) -> Manifest:
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

    Raises
    ------
    SourceError
        A column is missing or has invalid cells; rows are named.
    """
    config, notes = recalled(table, config, name)
    wanted = _with_defaults(table, config, name)
    _require_targets(wanted, name)
    cells = {column: values for column, values in table.items() if config.inputs_only}
    table, columns, told = _present_columns(table, wanted, name)
    spelt = list(zip(*(_image_keys(table, column, root) for column in wanted.image_columns), strict=True))
    keys, absent, respelt = _files_of(spelt, missing, name)
    repeated = np.zeros(len(keys), bool) if config.inputs_only else repeated_rows(table)
    whole = np.array([absent.keys().isdisjoint(row) for row in keys], bool) & ~repeated
    images = sorted({key for row, complete in zip(keys, whole, strict=True) if complete for key in row})
    sample_keys = _sample_keys(table, wanted, spelt if config.inputs_only else keys, repeated)
    complete, on_labels = _samples(table, wanted, sample_keys, keys, images)
    samples = complete.take(whole)
    notes += [*told, *respelt, *on_labels, *repeated_note(repeated, name)]
    notes += lost_classes(complete.targets, samples.targets, "classes-without-samples", name, NONE_READ)
    shown = {encodable(key): reason for key, reason in absent.items()}
    kept = {
        column: [value for value, is_whole in zip(values, whole, strict=True) if is_whole]
        for column, values in cells.items()
        if column not in columns["image"]
    }
    return Manifest(images, samples, shown, columns, tuple(notes), kept)


def _samples(
    table: Table,
    wanted: ReadConfig,
    sample_keys: list[str],
    keys: list[tuple[str, ...]],
    images: list[str],
) -> tuple[SampleTable, list[Note]]:
    """Return all samples of a table, those without all of their images included, and notes on the cells."""
    targets, notes = {}, list[Note]()
    for label in wanted.label_columns:
        alone = len(wanted.label_columns) == 1
        targets[label], told = target_from_column(label, table[label], wanted.labels, alone)
        notes += told
    index = {key: number for number, key in enumerate(images)}
    samples = SampleTable(
        key=np.array(sample_keys, object),
        image=np.array([[index.get(key, -1) for key in row] for row in keys], np.int64),
        split=_splits(table, wanted.split_column, len(keys)),
        targets=targets,
        covariates=_covariates(table, wanted.covariate_columns, len(keys)),
        covariate_names=wanted.covariate_columns,
        group=_names(table, wanted.group_column, "group") if wanted.group_column else None,
        columns=_in_use(wanted),
    )
    if wanted.split_column is not None:
        notes += merged_notes(table[wanted.split_column])
    return samples, notes


def _files_of(
    spelt: list[tuple[str, ...]], missing: Callable[[Sequence[str]], dict[str, str]], name: str
) -> tuple[list[tuple[str, ...]], dict[str, str], list[Note]]:
    """Return the keys of the files that the rows name; those that cannot be read, and why; and notes."""
    absent = _absent({key for row in spelt for key in row}, missing)
    found = _otherwise_spelt(absent, missing)
    absent = {key: reason for key, reason in absent.items() if key not in found}
    return [tuple(found.get(key, key) for key in row) for row in spelt], absent, _respelt_note(found, name)


def _in_use(wanted: ReadConfig) -> Columns:
    """Return the columns in use by role, as they were asked for, and the separator of labels."""
    named = {role: getattr(wanted, name) for role, name in ROLES.items()}
    return {role: (name,) if isinstance(name, str) else name for role, name in named.items() if name}


def _absent(keys: set[str], missing: Callable[[Sequence[str]], dict[str, str]]) -> dict[str, str]:
    """Return the images that are known to be unreadable without reading any, with the reason."""
    absent = {key: "has a name that is not valid UTF-8" for key in keys if not storable(key)}
    return dict(sorted((absent | missing([*keys - absent.keys()])).items()))


def _otherwise_spelt(
    absent: Mapping[str, str], missing: Callable[[Sequence[str]], dict[str, str]]
) -> dict[str, str]:
    """Return for keys without a file those with one that differ in Unicode form, outer spaces or slashes."""
    others = {key: _spellings(key) for key in absent if storable(key) and "://" not in key}
    tried = list(dict.fromkeys(other for spellings in others.values() for other in spellings))
    gone = missing(tried) if tried else {}
    there = {key: [other for other in spellings if other not in gone] for key, spellings in others.items()}
    return {key: spellings[0] for key, spellings in there.items() if spellings}


def _spellings(key: str) -> list[str]:
    """Return other spellings of a path."""
    slashes = key.replace("\\", "/")
    spaces = "/".join(part.strip() for part in slashes.split("/"))
    texts = [key.strip(), _without_dots(slashes), _without_dots(spaces)]
    forms = [unicodedata.normalize(form, text) for text in (key, *texts) for form in ("NFC", "NFD")]
    return [other for other in dict.fromkeys((*texts, *forms)) if other not in ("", key)]


def _respelt_note(found: Mapping[str, str], name: str) -> list[Note]:
    """Return a note on images that are read although the manifest spells their paths otherwise."""
    if not found:
        return []
    first, file = next(iter(found.items()))
    differ = counted(
        len(found), f"path of {name} differs from the file's", f"paths of {name} differ from the files'"
    )
    message = (
        f"{differ} in Unicode form, outer spaces or slashes, and {verb(len(found))} read as "
        f"{verb(len(found), 'that', 'those')}: {first!a} as {file!a}."
    )
    return [Note("paths-found-by-other-spelling", message, details={"paths": len(found)})]


def _with_defaults(table: Table, config: ReadConfig, name: str) -> ReadConfig:
    """Return `config` with the default columns that the table has; SourceError without an image column."""
    images = config.image_columns
    if not images:
        images = tuple(column for column in IMAGE_DEFAULTS if find_column(table, column, name))[:1]
    if not images:
        _require_header(table, name)
        close = [column for column in table if _holds_images(table[column])] or _close(table, IMAGE_NAMES)
        raise SourceError(
            f"The manifest {name} has columns {listed(table, 20)}; expected 'image' or 'file_name'.",
            f"Name the column of image paths: --image-column {as_argument(close[0] if close else 'NAME')}.",
        )
    labels, split = config.label_columns, config.split_column
    if not config.inputs_only:
        labels = labels or (("label",) if find_column(table, "label", name) else ())
        split = split or ("split" if find_column(table, "split", name) else None)
    return replace(config, image_columns=images, label_columns=labels, split_column=split)


def _require_header(table: Table, name: str) -> None:
    """Raise SourceError where the names of the columns are those of an image, or of several columns."""
    if first := [column for column in table if is_image(column)]:
        raise SourceError(
            f"The first row of {name} names the image {first[0]!r}; expected the names of the columns there.",
            "Add a first row such as image,label.",
        )
    (only, *others) = table
    if separator := next((mark for mark in (";", "\t") if mark in only and not others), None):
        raise SourceError(
            f"The columns of {name} are separated by {separator!r}; expected commas.",
            "Save the table with commas between its cells.",
        )


def _require_targets(wanted: ReadConfig, name: str) -> None:
    """Raise SourceError where a target is said to be of some kind and is not read."""
    for flag, targets in (("--classes", wanted.classes), ("--regression", wanted.regression)):
        if unknown := [target for target in targets if target not in wanted.label_columns]:
            raise SourceError(
                f"{flag} names {unknown[0]!r}, but the targets read from {name} are "
                f"{', '.join(wanted.label_columns) or 'none'}.",
                f"Read it with --label-column {as_argument(unknown[0])}, or leave {flag} out.",
            )


def _present_columns(table: Table, wanted: ReadConfig, name: str) -> tuple[Table, Columns, list[Note]]:
    """Return the table with the wanted columns under their wanted names, the columns by role, and notes.

    Raises SourceError where a column is not in the table.
    """
    one_each = {"split": wanted.split_column, "group": wanted.group_column, "sample": wanted.sample_column}
    roles = {
        "image": wanted.image_columns,
        "label": wanted.label_columns,
        **{role: (column,) for role, column in one_each.items() if column},
        "covariate": wanted.covariate_columns,
    }
    notes, columns, cells = [], {}, dict(table)
    for role, names in roles.items():
        found = tuple(_found(table, column, name) for column in names)
        cells |= {column: table[actual] for column, actual in zip(names, found, strict=True)}
        if found:
            columns[role] = found
        notes += [
            spelling_note(actual, column, name)
            for column, actual in zip(names, found, strict=True)
            if column != actual
        ]
    used = {column for found in columns.values() for column in found}
    columns["unused"] = tuple(column for column in table if column not in used)
    return cells, columns, notes + _unused_notes(table, wanted, columns, name)


def _found(table: Table, column: str, name: str) -> str:
    """Return the column's name in the table; SourceError, with close names, if it is not there."""
    if found := find_column(table, column, name):
        return found
    close = difflib.get_close_matches(folded(column), {folded(other): other for other in table}, n=1)
    offered = [other for other in table if folded(other) in close]
    raise SourceError(
        f"The manifest {name} has no column {column!r}; it has {listed(table, 20)}.",
        f"Did you mean {offered[0]!r}?" if offered else "",
    )


def _unused_notes(table: Table, wanted: ReadConfig, columns: Columns, name: str) -> list[Note]:
    """Return notes on columns that are not used although they look as if they were meant to be."""
    notes, unused = [], columns["unused"]
    if not wanted.label_columns and unused and not wanted.inputs_only:
        close = _close(unused, LABEL_NAMES)
        advice = f"--label-column {as_argument(close[0])}" if close else "--label-column NAME"
        message = f"{name} has no column 'label', so its samples have no labels; to read some, give {advice}."
        notes.append(Note("no-label-column", message, details={"unused": list(unused)}))
    if wanted.split_column is None and not wanted.inputs_only:
        notes += [
            _unused_split_note(column, table[column], name)
            for column in unused
            if folded(column) in SPLIT_NAMES or _mostly_splits(table[column])
        ]
    for role, taken in columns.items():
        for column in (column for column in unused if role != "unused"):
            second = role == "image" and taken[0] == "image" and column == "file_name"
            if second or folded(column) in map(folded, taken):
                message = f"Column {column!r} of {name} is not used; {taken[0]!r} is the {role} column."
                notes.append(Note("column-passed-over", message, True, {"column": column}))
    return notes


def _mostly_splits(cells: Sequence[object]) -> bool:
    """Return whether at least half of the cells that are not blank name splits."""
    filled = [cell for cell in cells if not is_blank(cell)]
    return bool(filled) and 2 * sum(map(_names_split, filled)) >= len(filled)


def _unused_split_note(column: str, cells: Sequence[object], name: str) -> Note:
    """Return the note that a column which seems to be one of splits is not used."""
    odd = next((cell for cell in cells if not _names_split(cell)), None)
    message = f"Column {column!r} of {name} seems to name splits but is not used; all samples are train. "
    if any(not _names_split(cell) for cell in cells):
        got = "a blank cell" if is_blank(odd) else repr(odd)[:40]
        message += f"To use it, write train, val or test in each row (it has {got}), and "
    else:
        message += "To use it, "
    message += f"give --split-column {as_argument(column)}."
    return Note("split-column-unused", message, True, {"column": column})


def _holds_images(cells: Sequence[object]) -> bool:
    """Return whether most cells are names of images."""
    return sum(isinstance(cell, str) and is_image(cell) for cell in cells) > len(cells) / 2


def _close(columns: Sequence[str] | Table, words: Sequence[str]) -> list[str]:
    """Return the columns whose names contain or resemble one of the words, in the words' order."""
    whole = [column for word in words for column in columns if word == folded(column)]
    inside = [column for word in words for column in columns if len(word) > 1 and word in folded(column)]
    alike = [c for word in words for c in columns if difflib.get_close_matches(folded(c), [word], cutoff=0.7)]
    return list(dict.fromkeys(whole + inside + alike))


def _image_keys(table: Table, column: str, root: str) -> list[str]:
    """Return the cells of an image column as keys: without "./", relative where they are below the root."""
    cells = table[column]
    if bad := [row for row, cell in enumerate(cells, 1) if not isinstance(cell, str) or not cell]:
        raise SourceError(f"Column {column!r} names no image in {rows_named(bad)}; expected a path.")
    return [_relative(cell, root) for cell in cells]


def _relative(path: str, root: str) -> str:
    """Return the key of a path. ".." is not resolved: after a link to a folder it means another folder."""
    path = path.removeprefix(root.rstrip("/") + "/")
    return path if "://" in path else _without_dots(path)


def _without_dots(path: str) -> str:
    """Return a path without "." and empty parts."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return ("/" if path.startswith("/") else "") + "/".join(parts)


def _sample_keys(
    table: Table, wanted: ReadConfig, images: list[tuple[str, ...]], repeated: np.ndarray
) -> list[str]:
    """Return the names of the samples, from a column or from their images.

    They are unique but for repeated rows. Where inputs alone are read they need not be, and a blank cell
    stands for the name of the images.
    """
    column, named = wanted.sample_column, ["|".join(row) for row in images]
    if wanted.inputs_only:
        cells = [None] * len(named) if column is None else table[column]
        return [key if is_blank(cell) else str(cell) for cell, key in zip(cells, named, strict=True)]
    keys = named if column is None else list(_names(table, column, "sample"))
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys, 1):
        if not repeated[row - 1]:
            rows.setdefault(key, []).append(row)
    twice = [key for key, numbers in rows.items() if len(numbers) > 1]
    if twice:
        more = f", and {counted(len(twice) - 1, 'more key')}" if len(twice) > 1 else ""
        raise SourceError(
            f"Duplicate sample keys: {twice[0]!r} in {rows_named(rows[twice[0]])}{more}.",
            "Remove the repeated rows, or name a column of unique keys with --sample-column.",
        )
    return keys


def _names(table: Table, column: str, what: str) -> np.ndarray:
    """Return the cells of a column as (S,) object array of str; SourceError unless every row has a name."""
    cells = table[column]
    good = [not is_blank(cell) and storable(str(cell)) for cell in cells]
    if bad := [row for row, is_good in enumerate(good, 1) if not is_good]:
        raise SourceError(
            f"Column {column!r} names no {what} in {rows_named(bad)}; expected one in each row."
        )
    return np.array([str(cell) for cell in cells], object)


def _names_split(cell: object) -> bool:
    return isinstance(cell, str) and split_named(cell) is not None


def _splits(table: Table, column: str | None, rows: int) -> np.ndarray:
    """Return the (S,) object array of "train", "val" or "test"; SourceError for a cell that names none."""
    if column is None:
        return np.full(rows, "train", object)
    cells = table[column]
    bad = [row for row, cell in enumerate(cells, 1) if not _names_split(cell)]
    if not bad:
        return np.array([split_named(cell) for cell in cells], object)
    got = ["a blank cell" if is_blank(cells[row - 1]) else repr(cells[row - 1])[:40] for row in bad]
    shown = ", ".join(list(dict.fromkeys(got))[:3])
    raise SourceError(
        f"Column {column!r} has {shown} in {rows_named(bad)}; expected one of {', '.join(ALIASES)}.",
        "Write the words in place of codes (0 as train, 1 as val …), remove rows that belong to no split, or "
        "rename the column if it holds something else.",
    )


def _covariates(table: Table, names: tuple[str, ...], rows: int) -> np.ndarray:
    """Return (S, P) float64, all finite."""
    values = np.zeros((rows, len(names)))
    for column, name in enumerate(names):
        numbers = [to_number(cell) for cell in table[name]]
        bad = [row for row, number in enumerate(numbers, 1) if number is None or not math.isfinite(number)]
        if bad:
            cell = table[name][bad[0] - 1]
            got = "blank" if is_blank(cell) else repr(cell)[:40]
            raise SourceError(
                f"Covariate {name!r} is {got} in {rows_named(bad)}; expected finite numbers.",
                "Fill the values in, or leave the covariate out.",
            )
        values[:, column] = numbers
    return values
