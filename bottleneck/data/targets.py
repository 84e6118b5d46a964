"""Turn a column of labels into a target: classes, several labels at once, or numbers.

Shapes: S samples, L labels of a multi-label target.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from shlex import quote
from typing import Any

import numpy as np

from bottleneck.data.class_names import name_notes
from bottleneck.data.config import LabelConfig
from bottleneck.data.table_file import as_argument, rows_named, storable, to_number
from bottleneck.errors import Note, SourceError, counted, verb
from bottleneck.samples import UNLABELLED, Target

_WHOLE = re.compile(r"[+-]?\d{1,1000}", re.ASCII)
_LEADING_ZERO = re.compile(r"[+-]?0\d", re.ASCII)
_LIST = re.compile(r"\[.*\]", re.DOTALL)
_BOOLEANS = ("true", "false")
AS_THEY_LOOK = LabelConfig()
SEPARATORS = ("|", ";", ",", "\t")  # that others put between the labels of one cell
WEAKER = ("/", "&", "+", " ")  # these, only where all that they separate are classes themselves
FEW_OF_EACH = 20  # labelled samples from which a class for most of them is told
REPEATS = 5  # samples per value, in the mean, from which numbers are taken for codes


def class_target(
    name: str, labels: Sequence[str | None], order: Callable[[str], Any] | None = None
) -> Target:
    """Return the class target of S class names, None where unlabelled.

    Codes follow the names in code-point order, or in that of the sort key `order`.
    """
    class_names = sorted({label for label in labels if label is not None}, key=order)
    code = {label: number for number, label in enumerate(class_names)} | {None: UNLABELLED}
    return Target(name, "class", np.array([code[label] for label in labels], np.int64), tuple(class_names))


def target_from_column(
    name: str, values: Sequence[Any], config: LabelConfig = AS_THEY_LOOK, alone: bool = True
) -> tuple[Target, list[Note]]:
    """Return the target of the S cells of a column, and notes on what was decided.

    Parameters
    ----------
    name : str
        The target.
    values : sequence
        None, "" and spaces are unlabelled. Lists make a multi-label target ([] has none of the labels).
        Numbers, or texts that are all numbers, make a regression target where any has a fraction and they are
        no plausible codes (`_are_quantities`), and classes in numeric order otherwise; NaN is unlabelled. Any
        other text is a class name; names are in code-point order. Two different texts are two classes, but
        for true and false, which are written in several ways.
    config : LabelConfig
        Targets that are classes or regressions whatever their cells look like, and the separator of labels.
    alone : bool
        Whether a separator is meant for this column also where it stands in no cell.

    Raises
    ------
    SourceError
        Lists beside single values, cells that are neither text nor number, infinite numbers: rows named.
    """
    cells, notes = _without_blanks(name, [None if _is_missing(value) else value for value in values])
    cells, told = _split_cells(name, cells, config, alone)
    notes += told
    if any(isinstance(cell, list) for cell in cells):
        target = _multilabel(name, cells)
        return target, notes + name_notes(target)
    _refuse(name, cells, lambda cell: isinstance(cell, str | int | float), "text, a number or a list of them")
    _refuse(name, cells, lambda cell: storable(str(cell)), "valid UTF-8 without NUL")
    numbers = [None if cell is None else to_number(cell) for cell in cells]
    are_numbers = all(n is not None or cell is None for n, cell in zip(numbers, cells, strict=True))
    if name in config.classes or (not are_numbers and name not in config.regression):
        target, told = _of_names(name, cells, numbers, certain=name in config.classes)
    else:
        target, told = _of_numbers(name, cells, numbers, certain=name in config.regression)
    return target, notes + told


def _without_blanks(name: str, cells: list[Any]) -> tuple[list[Any], list[Note]]:
    """Return the cells, None in place of spaces alone, and a note on those."""
    blank = [isinstance(cell, str) and not cell.strip() for cell in cells]
    if not any(blank):
        return cells, []
    labels = counted(sum(blank), f"label of {name!r} is", f"labels of {name!r} are")
    message = f"{labels} spaces alone, and counted as unlabelled."
    note = Note("blank-labels", message, details={"target": name, "samples": sum(blank)})
    return [None if is_blank else cell for cell, is_blank in zip(cells, blank, strict=True)], [note]


def _split_cells(
    name: str, cells: list[Any], config: LabelConfig, alone: bool
) -> tuple[list[Any], list[Note]]:
    """Return the cells, lists where a separator is named and meant for them, and notes on separators."""
    separator = config.label_separator
    if name in config.classes or name in config.regression:
        return cells, []
    if separator is None:
        return cells, _separator_notes(name, cells)
    if alone or any(isinstance(cell, str) and separator in cell for cell in cells):
        return [_separated(cell, separator) for cell in cells], _separated_notes(name, cells, separator)
    message = f"No cell of {name!r} contains {separator!r}: it has one label a sample."
    return cells, [Note("label-separator-unused", message, True, {"target": name})]


def _of_names(
    name: str, cells: list[Any], numbers: Sequence[float | None], certain: bool
) -> tuple[Target, list[Note]]:
    """Return the target whose classes the cells name. certain : the user says so."""
    target = class_target(name, [None if cell is None else _name(cell) for cell in cells], _order(cells))
    notes = _merged_notes(name, cells)
    if not certain:
        notes += _text_notes(target, cells, numbers)
    return target, notes + name_notes(target, certain)


def _of_numbers(
    name: str, cells: list[Any], numbers: Sequence[float | None], certain: bool
) -> tuple[Target, list[Note]]:
    """Return the regression of numbers, or their classes. certain : the user says that it is a regression."""
    notes: list[Note] = []
    _refuse(name, cells, _is_numeric, "a number")
    _refuse(name, numbers, lambda number: not math.isinf(number), "a finite number")
    if undefined := sum(number is not None and math.isnan(number) for number in numbers):
        labels = counted(undefined, f"label of {name!r} is", f"labels of {name!r} are")
        message = f"{labels} NaN, and counted as unlabelled."
        notes.append(Note("nan-labels", message, details={"target": name, "samples": undefined}))
    numbers = [None if number is None or math.isnan(number) else number for number in numbers]
    if certain or _are_quantities(cells, numbers):
        measured = [math.nan if number is None else number for number in numbers]
        if not certain:
            notes.append(_kind_note(name, "regression", "quantities"))
        return Target(name, "regression", np.array(measured, np.float64)), notes
    names = [None if number is None else _name(cell) for cell, number in zip(cells, numbers, strict=True)]
    target = class_target(name, names, _order(cells))
    K, labelled = len(target.class_names), int(target.labelled.sum())
    if any(number % 1 for number in numbers if number is not None) or (K > 20 and labelled < REPEATS * K):
        notes.append(_kind_note(name, "classes", f"the names of {counted(K, 'class', 'classes')}"))
    return target, notes + name_notes(target)


def _separated(cell: Any, separator: str) -> Any:
    """Return the labels in a cell as a list; lists and missing cells as they are."""
    if cell is None or isinstance(cell, list):
        return cell
    if not isinstance(cell, str):
        return [cell]
    return [label.strip() for label in cell.split(separator) if label.strip()]


def _separator_notes(name: str, cells: Sequence[Any]) -> list[Note]:
    """Return a note if cells look like several labels each.

    A separator stands in most of them, or only beside names that are classes of their own elsewhere.
    """
    texts = [cell for cell in cells if isinstance(cell, str)]
    lists = [text for text in texts if _LIST.fullmatch(text.strip())]
    if len(lists) > len(texts) / 2:
        message = (
            f"{len(lists)} of {counted(len(texts), 'label')} of {name!r} "
            f"{verb(len(lists), 'looks like a list', 'look like lists')}, such as {lists[0][:40]!r}, "
            "and each text is one class. If it is several labels, write a|b and give --label-separator '|', "
            f"or lists in .jsonl; if not, --classes {as_argument(name)}."
        )
        return [Note("labels-look-like-several", message, True, {"target": name, "separator": None})]
    for separator in (*SEPARATORS, *WEAKER):
        several = [text for text in texts if separator in text.strip().strip(separator)]
        single = set(texts).difference(several)
        parts = [set(_separated(text, separator)) for text in several]
        if separator in WEAKER:
            told = all(single >= labels for labels in parts)
        else:
            told = len(several) > len(texts) / 2 or all(single & labels for labels in parts)
        if several and told:
            message = (
                f"{separator!r} stands in {len(several)} of {counted(len(texts), 'label')} of {name!r}, "
                "such as "
                f"{several[0][:40]!r}, and each text is one class. If it is several labels, "
                f"give --label-separator {quote(separator)}; if not, --classes {as_argument(name)}."
            )
            return [Note("labels-look-like-several", message, True, {"target": name, "separator": separator})]
    return []


def _separated_notes(name: str, cells: Sequence[Any], separator: str) -> list[Note]:
    """Return notes on cells of which `separator` stands in none, and on another separator in them."""
    texts = [cell for cell in cells if isinstance(cell, str)]
    if not texts or any(separator in text for text in texts):
        return []
    message = f"No cell of {name!r} contains {separator!r}: each sample has one label of several."
    note = Note("label-separator-unused", message, True, {"target": name})
    return [note, *_separator_notes(name, texts)]


def _text_notes(target: Target, cells: Sequence[Any], numbers: Sequence[float | None]) -> list[Note]:
    """Return notes on classes that may be quantities: numbers beside few texts, or many classes."""
    labelled = [(cell, number) for cell, number in zip(cells, numbers, strict=True) if cell is not None]
    texts = [cell for cell, number in labelled if number is None]
    measured = [pair for pair in labelled if pair[1] is not None]
    n, K = len(labelled), len(target.class_names)
    if len(measured) > n / 2 and _are_quantities(*zip(*measured, strict=True)):
        message = (
            f"{len(measured)} of {counted(n, 'label')} of {target.name!r} {verb(len(measured))} numbers "
            f"and {len(texts)} {verb(len(texts))} not, such as {texts[0]!r}: all are read as names of "
            "classes. Correct or empty these cells if they are "
            f"quantities; if not, give --classes {as_argument(target.name)}."
        )
        return [Note("numbers-beside-text", message, True, {"target": target.name, "texts": len(texts)})]
    if n >= FEW_OF_EACH and n / 2 < K:
        message = (
            f"The {counted(n, 'label')} of {target.name!r} are {counted(K, 'class', 'classes')}, such as "
            f"{target.class_names[0][:40]!r}. If "
            "they are quantities, write plain numbers; if they are names of classes, give --classes "
            f"{as_argument(target.name)}."
        )
        return [Note("class-for-most-samples", message, True, {"target": target.name, "classes": K})]
    return []


def _kind_note(name: str, kind: str, meaning: str) -> Note:
    """Return the note that the numbers of a column were taken for one kind of target and not the other."""
    other, if_so = ("classes", "names of classes") if kind == "regression" else ("regression", "quantities")
    return Note(
        f"numbers-read-as-{kind}",
        f"The numbers of {name!r} are read as {meaning}. To confirm, give --{kind} {as_argument(name)}; "
        f"if they are {if_so}, --{other} {as_argument(name)}.",
        True,
        {"target": name},
    )


def _are_quantities(cells: Sequence[Any], numbers: Sequence[float | None]) -> bool:
    """Return whether numbers have fractions and are no plausible codes.

    Codes are numbers that are written in two ways (1.1 and 1.10) or with leading zeros (01.5), or few numbers
    that repeat, `REPEATS` times in the mean.
    """
    if not any(number % 1 for number in numbers if number is not None):
        return False
    labelled = [
        (_name(cell), number) for cell, number in zip(cells, numbers, strict=True) if number is not None
    ]
    names, values = {text for text, _ in labelled}, {number for _, number in labelled}
    if len(values) < len(names) or any(_LEADING_ZERO.match(text.strip()) for text in names):
        return False
    return len(labelled) < REPEATS * len(names)


def _merged_notes(name: str, cells: Sequence[Any]) -> list[Note]:
    """Return a note for each of true and false that is spelt in several ways and so became one class."""
    notes = []
    for value in _BOOLEANS:
        same = [cell for cell in cells if cell is not None and _name(cell) == value]
        spellings = sorted({cell if isinstance(cell, str) else value for cell in same})
        if len(spellings) > 1:
            message = f"{', '.join(spellings)} are one class of {name!r}, {value!r}."
            notes.append(Note("classes-merged", message, True, {"target": name, "classes": spellings}))
    return notes


def _is_missing(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _refuse(name: str, cells: Sequence[Any], accept: Callable[[Any], bool], expected: str) -> None:
    """Raise unless all cells that are not None are accepted."""
    bad = [row for row, cell in enumerate(cells, 1) if cell is not None and not accept(cell)]
    if bad:
        got = repr(cells[bad[0] - 1])
        raise SourceError(f"Column {name!r} has {got[:60]} in {rows_named(bad)}; expected {expected}.")


def _is_numeric(cell: object) -> bool:
    return to_number(cell) is not None


def _name(cell: object) -> str:
    """Return a class name: text as it is written, whole numbers without a fraction, JSON's true and false."""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    text = str(cell)
    return text.lower() if text.lower() in _BOOLEANS else text


def _order(cells: Sequence[Any]) -> Callable[[str], Any] | None:
    """Return the sort key of class names: numbers by their value and NaN last, where all are numbers."""
    if not all(cell is None or _is_numeric(cell) for cell in cells):
        return None

    def place(text: str) -> tuple[bool, float, str]:
        number = int(text) if _WHOLE.fullmatch(text.strip()) else float(text)
        undefined = number != number  # NaN, which is in no order with other numbers
        return undefined, 0 if undefined else number, text

    return place


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
