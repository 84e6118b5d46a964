"""Check a JSON record that may come from a stranger's file: it has the expected fields, each of its type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bottleneck.errors import ArtifactError

Check = Callable[[Any], bool]


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


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def are_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(is_number, value))
