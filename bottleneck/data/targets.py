"""Turn a column of labels into a target: classes, several labels at once, or numbers.

Shapes: S samples, L labels of a multi-label target.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bottleneck.data.table_file import rows_named, storable
from bottleneck.errors import SourceError
from bottleneck.samples import UNLABELLED, Target

# Python's `float` also reads "1_000" and digits of other scripts; they are names here.
_NUMBER = re.compile(
    r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity|nan)", re.ASCII | re.IGNORECASE
)
_WHOLE = re.compile(r"[+-]?\d{1,1000}", re.ASCII)


def class_target(
    name: str, labels: Sequence[str | None], order: Callable[[str], Any] | None = None
) -> Target:
    """Return the class target of S class names, None where unlabelled.

    Codes follow the names in code-point order, or in that of the sort key `order`.
    """
    class_names = sorted({label for label in labels if label is not None}, key=order)
    code = {label: number for number, label in enumerate(class_names)} | {None: UNLABELLED}
    return Target(name, "class", np.array([code[label] for label in labels], np.int64), tuple(class_names))


def target_from_column(name: str, values: Sequence[Any]) -> Target:
    """Return the target of the S cells of a column.

    Parameters
    ----------
    name : str
        The column, and the target.
    values : sequence
        None or "" is unlabelled. Lists make a multi-label target ([] has none of the labels). Numbers, or
        texts that are all numbers, make a regression target where any has a fraction, and classes in numeric
        order otherwise; NaN is unlabelled. Any other text is a class name; names are in code-point order.

    Raises
    ------
    SourceError
        Lists beside single values, cells that are neither text nor number, infinite numbers: rows named.
    """
    cells = [None if _is_missing(value) else value for value in values]
    if any(isinstance(cell, list) for cell in cells):
        return _multilabel(name, cells)
    _refuse(name, cells, lambda cell: isinstance(cell, str | int | float), "text, a number or a list of them")
    _refuse(name, cells, lambda cell: storable(str(cell)), "valid UTF-8 without NUL")
    numbers = [None if cell is None else to_number(cell) for cell in cells]
    if any(number is None and cell is not None for number, cell in zip(numbers, cells, strict=True)):
        return class_target(name, [None if cell is None else _name(cell) for cell in cells])
    _refuse(name, numbers, lambda number: not math.isinf(number), "a finite number")
    numbers = [None if number is None or math.isnan(number) else number for number in numbers]
    if any(number is not None and number % 1 for number in numbers):
        measured = [math.nan if number is None else number for number in numbers]
        return Target(name, "regression", np.array(measured, np.float64))
    whole = [_whole_name(cell, number) for cell, number in zip(cells, numbers, strict=True)]
    return class_target(name, whole, order=lambda text: (int(text), text))


def to_number(cell: object) -> float | None:
    """Return the number in a cell, NaN and infinities included, or None where it is no number."""
    if isinstance(cell, str):
        return float(cell) if _NUMBER.fullmatch(cell.strip()) else None
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return None
    try:
        return float(cell)
    except OverflowError:
        return None


def _is_missing(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _refuse(name: str, cells: Sequence[Any], accept: Callable[[Any], bool], expected: str) -> None:
    """Raise unless all cells that are not None are accepted."""
    bad = [row for row, cell in enumerate(cells, 1) if cell is not None and not accept(cell)]
    if bad:
        got = repr(cells[bad[0] - 1])
        raise SourceError(f"Column {name!r} has {got[:60]} in {rows_named(bad)}; expected {expected}.")


def _name(cell: object) -> str:
    """Return a class name, with JSON's spelling of true and false."""
    return str(cell).lower() if isinstance(cell, bool) else str(cell)


def _whole_name(cell: object, number: float | None) -> str | None:
    """Return the class name of a whole number: as it is written, or "1" for 1.0."""
    if number is None:
        return None
    text = str(cell).strip()
    return text if _WHOLE.fullmatch(text) else str(int(number))


def _multilabel(name: str, cells: list[Any]) -> Target:
    """Return the multi-label target of lists of names; a missing list is an unlabelled row of 255."""
    _refuse(name, cells, lambda cell: isinstance(cell, list), "a list, as in other rows")
    _refuse(name, cells, lambda cell: all(isinstance(label, str | int | float) for label in cell), "names")
    _refuse(name, cells, lambda cell: all(storable(str(label)) for label in cell), "UTF-8 without NUL")
    labels = [None if cell is None else {_name(label) for label in cell} for cell in cells]
    names = sorted(set().union(*(row for row in labels if row)))
    column = {label: index for index, label in enumerate(names)}
    values = np.zeros((len(cells), len(names)), np.uint8)
    for row, present in zip(values, labels, strict=True):
        if present is None:
            row[:] = 255
        else:
            row[[column[label] for label in present]] = 1
    return Target(name, "multilabel", values, tuple(names))
