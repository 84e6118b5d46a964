"""Read a manifest by the columns that a model or cache was made with, where the user names no others.

{"image": ("photo",), "split": ("fold",), "covariate": ("age",), "separator": ("|",)}
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bottleneck.data.config import ReadConfig
from bottleneck.data.table_file import Table, find_column, folded
from bottleneck.errors import Note, SourceError, listed
from bottleneck.samples import SampleTable

ROLES = {  # of `ReadConfig` that name the columns of each role
    "image": "image_columns",
    "label": "label_columns",
    "split": "split_column",
    "group": "group_column",
    "sample": "sample_column",
    "covariate": "covariate_columns",
    "separator": "label_separator",
}
ASIDE = {"val": "val_fraction", "test": "test_fraction", "seed": "seed"}  # fields for `SampleTable.set_aside`
DEFAULTS = {"image": ("image", "file_name"), "label": ("label",), "split": ("split",)}  # found without memory
ANSWERS = ("label", "separator", "split", "group")  # which predictions do not need
INSTEAD = {
    "image": "the default column is read",
    "label": "a column 'label' is read if there is one",
    "split": "a column 'split' is read if there is one; otherwise the samples have no splits",
    "group": "the samples have no groups",
    "sample": "samples are named by their images",
}


def recalled(table: Table, config: ReadConfig, name: str) -> tuple[ReadConfig, list[Note]]:
    """Return `config` with the remembered columns in place of those that no flag names, and notes.

    name : of the manifest's file.

    Raises
    ------
    SourceError
        A column is missing without which the model has no inputs.
    """
    taken: dict[str, tuple[str, ...]] = {}
    notes = []
    for role, columns in config.remembered.items():
        if role not in ROLES:  # of a later release, or of no one
            continue
        if getattr(config, ROLES[role]) or not columns or not _is_needed(role, config):
            continue
        missing = [] if role == "separator" else [c for c in columns if find_column(table, c, name) is None]
        if not missing:
            taken[role] = columns
        elif role == "covariate" or (role == "image" and len(columns) > 1):
            raise SourceError(
                f"The training data has {_named(role, columns)}, and {name} has no column {missing[0]!r}; it "
                f"has {listed(table, 20)}.",
                "Add or rename the column."
                if role == "covariate"
                else "Name the columns of the images in that order with --image-column.",
            )
        else:
            notes.append(_missing_note(role, missing[0], name))
    if told := {role: columns for role, columns in taken.items() if not _is_default(role, columns)}:
        shown = ", ".join(_named(role, columns) for role, columns in told.items())
        message = f"{name} is read by the columns of the training data: {shown}. Flags override them."
        details = {"columns": {role: list(columns) for role, columns in told.items()}}
        notes.append(Note("remembered-columns", message, details=details))
    named = {ROLES[role]: _as_field(role, columns) for role, columns in taken.items()}
    return replace(config, **named), notes  # type: ignore[arg-type]  # each of its own type


def as_before(samples: SampleTable, config: ReadConfig) -> ReadConfig:
    """Return `config` with what `samples` were read by: columns that it does not name, kinds, fractions.

    The same source then has the same labels and splits.
    """
    values: dict[str, Any] = {
        ROLES[role]: _as_field(role, names)
        for role, names in samples.columns.items()
        if role in ROLES and not getattr(config, ROLES[role])
    }
    values |= {ASIDE[name]: number for name, number in samples.set_aside.items()}
    kinds = {name: target.kind for name, target in samples.targets.items()}
    from_columns = samples.columns.get("label", ())
    classes = tuple(name for name, kind in kinds.items() if kind == "class" and name in from_columns)
    regression = tuple(name for name, kind in kinds.items() if kind == "regression")
    return replace(config, remembered={}, classes=classes, regression=regression, **values)


def _is_needed(role: str, config: ReadConfig) -> bool:
    if config.inputs_only and role in ANSWERS:
        return False
    return role != "group" or bool(config.val_fraction or config.test_fraction)


def _is_default(role: str, columns: tuple[str, ...]) -> bool:
    return len(columns) == 1 and folded(columns[0]) in DEFAULTS.get(role, ())


def _as_field(role: str, columns: tuple[str, ...]) -> str | tuple[str, ...]:
    return columns if ROLES[role].endswith("columns") else columns[0]


def _named(role: str, columns: tuple[str, ...]) -> str:
    return f"{role} {' and '.join(map(repr, columns))}"


def _missing_note(role: str, column: str, name: str) -> Note:
    message = f"{name} has no column {column!r}, the {role} column of the training data: {INSTEAD[role]}."
    return Note("remembered-column-missing", message, details={"role": role, "column": column})
