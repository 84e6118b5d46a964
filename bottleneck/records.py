"""Configs from arguments of functions, values as JSON, and checks of the records in a stranger's file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, cast

from bottleneck.errors import ArtifactError, Note

Check = Callable[[Any], bool]
Config = TypeVar("Config")


class Result:
    """Base class of the result of a public function: a dataclass whose fields are what `--json` prints."""

    notes: Sequence[Note]

    def to_json(self) -> dict[str, Any]:
        """Return the fields, the notes as JSON objects."""
        return {**vars(self), "notes": [note.to_json() for note in self.notes]}


def config_from(kind: type[Config], arguments: Mapping[str, Any], **others: Any) -> Config:
    """Return a `kind` with the values of the same names in `others` and `arguments`, else its defaults.

    kind : a dataclass; a field that is a config itself is made of the same arguments.
    arguments : `locals()` of a public function, which lists its options one by one.
    """
    values = dict(others)
    for item in fields(cast(Any, kind)):
        if is_dataclass(item.default_factory):
            values.setdefault(item.name, config_from(cast(Any, item.default_factory), arguments))
        elif item.name in arguments:
            values.setdefault(item.name, arguments[item.name])
    return kind(**values)


def plain(value: Any) -> Any:
    """Return a value for JSON: a note is an object, numpy values are Python's, NaN and infinity null, and
    other types text.
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Note):
        return plain(value.to_json())
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return str(value)


def require_fields(record: Any, checks: Mapping[str, Check], what: str, others: bool = False) -> None:
    """Raise ArtifactError unless `record` is a dict with the fields of `checks`, each accepted by its check.

    what : names the record, as the beginning of the message. others : allow fields beside these.
    """
    if not isinstance(record, dict):
        raise ArtifactError(f"{what} is {type(record).__name__}; expected a JSON object.")
    lacking = checks.keys() - record.keys()
    unknown = set() if others else record.keys() - checks.keys()
    if lacking or unknown:
        has, expected = (", ".join(sorted(map(str, names))) for names in (record, checks))
        raise ArtifactError(f"{what} has the fields {has or 'none'}; expected {expected}.")
    for name, accepts in checks.items():
        if not accepts(record[name]):
            raise ArtifactError(f"{what} has {name} {str(record[name])[:60]!r}, which is not of its type.")


def require_known_fields(record: Any, checks: Mapping[str, Check], what: str) -> None:
    """Raise ArtifactError unless `record` is a dict and its fields of `checks`, if present, are accepted.

    what : names the record, as the beginning of the message.
    """
    known = record if isinstance(record, dict) else {}
    present = {name: check for name, check in checks.items() if name in known}
    require_fields(record, present, what, others=True)


def require_calibration(record: Any, what: str) -> None:
    """Raise ArtifactError unless `record` is what an engine may have recorded of itself (`NodeSpec`).

    what : names the record, as the beginning of the message.
    """
    require_known_fields(record, CALIBRATION, what)


def is_text(value: Any) -> bool:
    """Return whether a field is a str."""
    return isinstance(value, str)


def is_flag(value: Any) -> bool:
    """Return whether a field is a bool."""
    return isinstance(value, bool)


def is_integer(value: Any) -> bool:
    """Return whether a field is an int and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a field is a float, or an int that a float can hold, and no bool."""
    return isinstance(value, float) or (is_integer(value) and abs(value) < 2**1023)


def is_object(value: Any) -> bool:
    """Return whether a field is a JSON object."""
    return isinstance(value, dict)


def are_objects(value: Any) -> bool:
    """Return whether a field is a list of JSON objects."""
    return isinstance(value, list) and all(map(is_object, value))


def are_numbers(value: Any) -> bool:
    """Return whether a field is a list or tuple of numbers."""
    return isinstance(value, list | tuple) and all(map(is_number, value))


CALIBRATION: dict[str, Check] = {  # its fields that are used
    "engine": is_text,
    "pixels_sha256": lambda value: is_text(value) and re.fullmatch("[0-9a-f]{64}", value) is not None,
    "float_layers": lambda value: is_integer(value) and 0 <= value < 2**63,
    "cosine": are_numbers,
}
