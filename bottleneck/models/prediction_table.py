"""Write predictions as a table: .csv, .jsonl or .parquet.

    image, [images], [sample], label, confidence, [p_CLASS …], then the columns of the manifest

In .jsonl each line is a record as `predict` returns it. In the others a column of the manifest that has the
name of one of ours is called NAME_given.
"""

from __future__ import annotations

import io
import json
import math
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from bottleneck.data.table_file import csv_lines
from bottleneck.errors import BottleneckError, Note
from bottleneck.files import require_file_name, write_whole

SEPARATORS = (
    "|",
    ";",
    ",",
    "\t",
    "\n",
)  # between several labels or images in one cell; the first that none contains
Records = list[dict[str, Any]]
Columns = dict[str, list[Any]]


def write_table(path: Path, predictions: Records, raw: bool) -> list[Note]:
    """Write the records of `predict`, and return notes on how.

    raw : leave texts in .csv as they are (`data.table_file`).
    """
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        write_whole(path, "".join(_line(record) for record in predictions).encode())
        return []
    columns, notes = _columns(predictions)
    write_whole(path, _as_csv(columns, raw) if suffix == ".csv" else _as_parquet(columns))
    return notes


def _line(record: dict[str, Any]) -> str:
    return json.dumps(_plain(record), ensure_ascii=False) + "\n"


def _as_csv(columns: Columns, raw: bool) -> bytes:
    rows = zip(*([_text(value) for value in values] for values in columns.values()), strict=True)
    return "".join(csv_lines([columns, *rows], raw)).encode()


def _as_parquet(columns: Columns) -> bytes:
    arrow, parquet = _pyarrow()
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = arrow.array(values)
        except arrow.ArrowException:  # cells of several types
            arrays[name] = arrow.array([None if value is None else _text(value) for value in values])
    data = io.BytesIO()
    parquet.write_table(arrow.table(arrays), data)
    return data.getvalue()


def _columns(predictions: Records) -> tuple[Columns, list[Note]]:
    """Return the table {column: values}, and notes on columns of the manifest that are renamed."""
    columns: Columns = {"image": [record["image"] for record in predictions]}
    notes: list[Note] = []
    if any("images" in record for record in predictions):
        several = [record.get("images", [record["image"]]) for record in predictions]
        columns["images"] = _joined(several, "images", notes)
    if any(record["sample"] != record["image"] for record in predictions):
        columns["sample"] = [record["sample"] for record in predictions]
    labels = [record["label"] for record in predictions]
    several_labels = any(isinstance(label, list) for label in labels)
    columns["label"] = (
        _joined(labels, "labels", notes) if several_labels else [_text(label) for label in labels]
    )
    columns["confidence"] = [record["confidence"] for record in predictions]
    for name in predictions[0].get("probabilities", {}):
        columns[f"p_{name}"] = [record["probabilities"][name] for record in predictions]
    given = dict.fromkeys(name for record in predictions for name in record.get("columns", {}))
    renamed = {}
    for name in given:
        free = name
        while free in columns or (free != name and free in given):
            free += "_given"
        if free != name:
            renamed[name] = free
        columns[free] = [record.get("columns", {}).get(name) for record in predictions]
    if renamed:
        shown = ", ".join(f"{name!r} is {free!r}" for name, free in renamed.items())
        message = f"Columns of the manifest whose names are taken by predictions: {shown}."
        notes.append(Note("columns-renamed", message, details={"columns": renamed}))
    return columns, notes


def _joined(cells: Iterable[list[str]], what: str, notes: list[Note]) -> list[str]:
    """Return the texts of each list as one, between them a separator that none contains."""
    lists = list(cells)
    used = {mark for mark in SEPARATORS if any(mark in text for texts in lists for text in texts)}
    separator = next((mark for mark in SEPARATORS if mark not in used), None)
    if separator is None:
        notes.append(Note("joined-as-json", f"Several {what} of a sample are written as JSON lists."))
        return [json.dumps(texts, ensure_ascii=False) for texts in lists]
    if separator != SEPARATORS[0]:
        message = f"Several {what} of a sample are written with {separator!r} between them: some contain '|'."
        notes.append(Note("joined-by-other-separator", message, details={"separator": separator}))
    return [separator.join(texts) for texts in lists]


def _text(value: Any) -> Any:
    """Return a cell as text; None as it is."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list | dict | bool):
        return json.dumps(_plain(value), ensure_ascii=False)
    return str(value)


def _plain(value: Any) -> Any:
    """Return a value for JSON: NaN and infinity are null, types that JSON lacks are text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


SUFFIXES = (".csv", ".jsonl", ".parquet")


def require_writable(path: Path) -> None:
    """Raise before the computation if the output cannot be written after it."""
    if path.suffix.lower() not in SUFFIXES:
        raise BottleneckError(
            f"The output {path} has no known suffix; expected one of {', '.join(SUFFIXES)}."
        )
    if path.suffix.lower() == ".parquet":
        _pyarrow()
    require_file_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        pass


def _pyarrow() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise BottleneckError(
            "Writing .parquet needs pyarrow.", "Run: pip install 'bottleneck-features[parquet]'"
        ) from None
    return pyarrow, parquet
