"""Columns of labels, as read from a table, to targets: classes, several labels at once, or numbers.

Shapes: S samples, L labels of a multi-label target.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from bottleneck.errors import SourceError
from bottleneck.samples import UNLABELLED, Target

_INTEGER = re.compile(r"[+-]?\d{1,18}")


def class_target(name: str, names: Sequence[str | None], order=None) -> Target:
    """A class target from S class names, None where unlabelled.

    Codes follow `order` (a sort key), by default the names' code points.
    """
    class_names = sorted({label for label in names if label is not None}, key=order)
    code = {label: number for number, label in enumerate(class_names)} | {None: UNLABELLED}
    return Target(name, "class", np.array([code[label] for label in names], np.int64), tuple(class_names))


def target_from_column(name: str, values: Sequence) -> Target:
    """A target from the S values of a manifest's column.

    Parameters
    ----------
    name : str
        The column, and the target.
    values : sequence
        None or "" is unlabelled. Lists make a multi-label target ([] has none of the labels). Numbers, or
        strings that all are numbers, make a regression target where any has a fraction, and classes in
        numeric order otherwise. Anything else is a class name; names are ordered by code point.

    Raises
    ------
    SourceError
        Lists beside single values, values that are neither text nor numbers, infinite numbers; rows named.
    """
    values = [None if isinstance(value, str) and not value else value for value in values]
    if any(isinstance(value, list) for value in values):
        return _multilabel(name, values)
    numbers = _numbers(values)
    if numbers is None:
        return class_target(name, _texts(name, values))
    if bad := [row for row, number in enumerate(numbers, 1) if number is not None and math.isinf(number)]:
        raise SourceError(f"Column {name!r} has infinite numbers in {rows_named(bad)}; expected finite ones.")
    numbers = [None if number is None or math.isnan(number) else number for number in numbers]
    if any(number is not None and number % 1 for number in numbers):
        return Target(name, "regression", np.array([math.nan if n is None else n for n in numbers], float))
    names = [_integer_name(value, number) for value, number in zip(values, numbers, strict=True)]
    return class_target(name, names, order=lambda text: (int(text), text))


def rows_named(rows: Sequence[int]) -> str:
    """ "row 3" or "rows 3, 7, 9 and 12 more"; rows count from 1, without a header."""
    shown = ", ".join(map(str, rows[:5]))
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"


def to_number(value) -> float | None:
    """The number that a cell holds, or None where it holds none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _numbers(values: list) -> list[float | None] | None:
    """The values as numbers, None where missing. None for all if one is no number or all are missing."""
    numbers = [None if value is None else to_number(value) for value in values]
    told = [number for value, number in zip(values, numbers, strict=True) if value is not None]
    return numbers if told and None not in told else None


def _integer_name(value, number: float | None) -> str | None:
    """The class name of a whole number: its own spelling, "1" for 1.0."""
    if number is None:
        return None
    text = str(value).strip()
    return text if _INTEGER.fullmatch(text) else str(int(number))


def _texts(name: str, values: list) -> list[str | None]:
    """Class names of a column that is not all numbers."""
    odd = [row for row, value in enumerate(values, 1) if not isinstance(value, str | int | float | None)]
    if odd:
        raise SourceError(
            f"Column {name!r} has a {type(values[odd[0] - 1]).__name__} in {rows_named(odd)}; "
            "expected text, numbers or lists of them."
        )
    return [None if _missing(value) else _text(value) for value in values]


def _missing(value) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text(value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _multilabel(name: str, values: list) -> Target:
    """A multi-label target of lists of names; a missing list is an unlabelled row of 255."""
    odd = [row for row, value in enumerate(values, 1) if not isinstance(value, list | None)]
    if odd:
        raise SourceError(f"Column {name!r} has lists in some rows but not in {rows_named(odd)}.")
    odd = [
        row
        for row, labels in enumerate(values, 1)
        if labels and not all(isinstance(label, str | int | float) for label in labels)
    ]
    if odd:
        raise SourceError(f"Column {name!r} has lists in {rows_named(odd)} whose entries are not names.")
    names = sorted({_text(label) for labels in values if labels for label in labels})
    place = {label: number for number, label in enumerate(names)}
    rows = np.zeros((len(values), len(names)), np.uint8)
    for row, labels in zip(rows, values, strict=True):
        if labels is None:
            row[:] = 255
        else:
            row[[place[_text(label)] for label in labels]] = 1
    return Target(name, "multilabel", rows, tuple(names))
