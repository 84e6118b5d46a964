"""Note what class names may mean, and which classes have no sample left."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from bottleneck.data.table_file import as_argument, folded, to_number
from bottleneck.errors import Note, quoted
from bottleneck.samples import Target

_NO_LABEL = (
    *("na", "n/a", "n.a.", "<na>", "nan", "null", "none", "nil", "?", "??", "-", "--", "#n/a", "missing"),
    *("unknown", "unlabeled", "unlabelled", "undefined", "not available", "no label", "tbd"),
)
_NO_NUMBER = ("-1", "-9", "-99", "-999", "-9999")  # codes of no label, where no other is negative


def name_notes(target: Target, certain: bool = False) -> list[Note]:
    """Return notes on class names that may mean the same, or no class at all.

    certain : the names are those of classes for sure: numbers and words such as "none" are not questioned.
    """

    def told(code: str, classes: Sequence[str], message: str, changes_result: bool = True) -> Note:
        shown = " and ".join(map(repr, classes))
        details = {"target": target.name, "classes": list(classes)}
        return Note(code, f"{shown} of {target.name!r} {message}", changes_result, details)

    notes = [
        told(
            "class-names-alike",
            alike,
            "are different classes, although they differ only in case, outer spaces or Unicode form; "
            "write them in one way if they are the same.",
        )
        for alike in _alike(target.class_names, folded)
    ]
    if certain:
        return notes
    notes += [
        told(
            "class-numbers-alike",
            alike,
            "are different classes, although one number; write them in one way if they are the same.",
            changes_result=False,
        )
        for alike in _alike(target.class_names, _exactly)
    ]
    missing = [text for text in target.class_names if folded(text) in _NO_LABEL]
    negative = [text for text in target.class_names if (to_number(text) or 0) < 0]
    if len(negative) == 1 and negative[0].strip() in _NO_NUMBER:
        missing += negative
    if missing:
        message = (
            "is a class; leave the cell empty if it means no label, or give --classes "
            f"{as_argument(target.name)}."
        )
        notes.append(told("class-named-like-no-label", missing, message))
    return notes


def lost_classes(
    before: Mapping[str, Target], after: Mapping[str, Target], code: str, where: str, why: str
) -> list[Note]:
    """Return notes on the classes that have samples before some were dropped or moved, and none after.

    code : of the notes. where, why : where there are none left, and the reason, which ends the sentence.
    """
    notes = []
    for name, target in before.items():
        lost = sorted(_present_classes(target) - _present_classes(after.get(name)))
        if lost:
            message = f"No sample of {quoted(lost)} (target {name!r}) is left in {where}: {why}."
            notes.append(Note(code, message, True, {"target": name, "classes": lost}))
    return notes


def _present_classes(target: Target | None) -> set[str]:
    """Return the names of the classes that have samples."""
    if target is None or target.kind == "regression":
        return set()
    if target.kind == "multilabel":
        present = (target.values == 1).any(axis=0)
        return {name for name, is_present in zip(target.class_names, present, strict=True) if is_present}
    return {target.class_names[code] for code in {*target.values[target.labelled].tolist()}}


def _alike(names: Sequence[str], key: Callable[[str], Any]) -> list[tuple[str, ...]]:
    """Return the groups of names, two or more, that have one key; None is none. Five groups at most."""
    groups: dict[Any, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return [tuple(group) for same, group in groups.items() if len(group) > 1 and same is not None][:5]


def _exactly(name: str) -> Decimal | None:
    """Return the number that a name is, with all its digits; None where it is no finite number."""
    number = to_number(name)
    return Decimal(name.strip()) if number is not None and math.isfinite(number) else None
