"""Read a table (.csv, .jsonl, .parquet) as columns of cells, find text that a cache cannot store, write CSV.

Rows are counted from 1, without the header.

A spreadsheet shows the written CSV as it is, and never executes it (OWASP, "CSV Injection"): a text cell that
begins with = + - @ (also their full-width forms), a tab or a line break, and is no number, gets an apostrophe
in front, which a spreadsheet hides. So does one that begins with apostrophes and then such a character;
removing one apostrophe gives back every text. Cells that contain a separator of any locale are quoted.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from shlex import quote
from typing import Any

import numpy as np

from bottleneck.errors import Note, SourceError, counted, listed, verb
from bottleneck.remote.urls import one_line

TABLE_SUFFIXES = (".csv", ".jsonl", ".parquet")

MOST_COLUMNS = 10_000
LONGEST_LINE = 16 << 20  # bytes of a JSONL table
MOST_CELLS = 20_000_000  # of a JSONL table most of whose cells are absent:
SPARSEST = 20  # cells for one that is given

Table = dict[str, list[Any]]  # column name -> one cell a row, None where it is missing
_EXECUTED = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
# Python's `float` also reads "1_000" and digits of other scripts; they are names here.
_READ_AS_NUMBER = re.compile(
    r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity|nan)", re.ASCII | re.IGNORECASE
)
_SEPARATORS = re.compile(r'[,;"\t\r\n]')


def read_table(name: str, data: bytes) -> Table:
    """Read a table.

    Parameters
    ----------
    name : str
        File name; its suffix is the format.
    data : bytes
        The file. Text is UTF-8, with or without a byte order mark.

    Returns
    -------
    dict of str to list
        CSV cells are text, None where empty; JSONL and Parquet cells have the types of JSON and Arrow.

    Raises
    ------
    SourceError
        The file is not such a table or has no rows: where and why.
    """
    if name.lower().endswith(".parquet"):
        table = _read_parquet(name, data)
    else:
        if not name.lower().endswith(".csv"):
            _require_lines(name, data)
        text = _decoded(name, data)
        table = _read_csv(name, text) if name.lower().endswith(".csv") else _read_jsonl(name, text)
    if not table or not next(iter(table.values())):
        raise SourceError(f"The table {name} has no rows.")
    _require_columns(name, len(table))
    return table


def _require_columns(name: str, count: int) -> None:
    if count > MOST_COLUMNS:
        raise SourceError(
            f"The table {name} has {counted(count, 'column')}; at most {MOST_COLUMNS:,} are read.",
            "Leave out columns that are no image, label, split, group or covariate.",
        )


def _require_lines(name: str, data: bytes) -> None:
    """Raise SourceError if a line is too long; Python needs many times its bytes."""
    start, number = 0, 1
    while len(data) - start > LONGEST_LINE:
        end = data.find(b"\n", start, start + LONGEST_LINE + 1)
        if end < 0:
            raise SourceError(
                f"The table {name} has more than {LONGEST_LINE:,} bytes in line {number}.",
                "Write one row a line, without the content of images.",
            )
        start, number = end + 1, number + 1


def rows_named(rows: Sequence[int]) -> str:
    """Return "row 3" or "rows 3, 7, 8, 9, 11 and 12 more"."""
    return f"row{'s' if len(rows) > 1 else ''} {listed(rows)}"


def folded(text: str) -> str:
    """Return a name as it is compared: composed letters, no spaces around it, without case."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).strip().casefold())


def as_argument(name: str) -> str:
    """Return the name of a column as a command takes it: in quotes where a shell would read it otherwise."""
    return name if name.isidentifier() else quote(name)


def is_blank(cell: object) -> bool:
    """Return whether a cell has no value."""
    return cell is None or (isinstance(cell, str) and not cell.strip())


def find_column(table: Table, name: str, file: str) -> str | None:
    """Return the column of this name, else the only one that differs from it in case and outer spaces alone.

    Raises SourceError where several do.
    """
    if name in table:
        return name
    alike = [column for column in table if folded(column) == folded(name)]
    if len(alike) > 1:
        raise SourceError(
            f"The table {file} has no column {name!r} but {' and '.join(map(repr, alike))}.",
            "Rename or remove all but one of them.",
        )
    return alike[0] if alike else None


def to_number(cell: object) -> float | None:
    """Return the number in a cell, NaN and infinities included, or None where it is no number."""
    if isinstance(cell, str):
        return float(cell) if _READ_AS_NUMBER.fullmatch(cell.strip()) else None
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return None
    try:
        return float(cell)
    except OverflowError:
        return None


def repeated_rows(table: Table) -> np.ndarray:
    """Return (rows,) bool, True where a row equals an earlier one in every column."""
    seen: set[str] = set()
    repeated = []
    for row in zip(*table.values(), strict=True):
        text = repr(row)
        repeated.append(text in seen)
        seen.add(text)
    return np.array(repeated, bool)


def repeated_note(repeated: np.ndarray, file: str) -> list[Note]:
    """Return the note that repeated rows are one sample with the row that they repeat."""
    if not repeated.any():
        return []
    rows = (np.flatnonzero(repeated) + 1).tolist()
    equal = counted(len(rows), f"row of {file} equals", f"rows of {file} equal")
    message = f"{equal} an earlier row in every column, and the two count as one sample: "
    return [Note("repeated-rows", f"{message}{rows_named(rows)}.", True, {"rows": len(rows)})]


def spelling_note(column: str, name: str, file: str) -> Note:
    """Return the note that a column was found although it is spelt otherwise."""
    return Note(
        "column-found-by-other-spelling",
        f"Column {column!r} of {file} is read as {name!r}.",
        details={"column": column, "used_as": name},
    )


def _decoded(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SourceError(
            f"The table {name} is not UTF-8 text (line {line}): {error.reason}.", "Save it as UTF-8."
        ) from error


def _read_csv(name: str, text: str) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        rows = [row for row in reader if row]
    except csv.Error as error:
        raise SourceError(f"The table {name} is not CSV (line {reader.line_num}): {error}.") from error
    _require_columns(name, len(header))
    if twice := [column for column, count in Counter(header).items() if count > 1]:
        raise SourceError(f"The table {name} has two columns named {twice[0]!r}.", "Rename one of them.")
    if odd := [number for number, row in enumerate(rows, 1) if len(row) != len(header)]:
        raise SourceError(
            f"The table {name} has {counted(len(header), 'column')}, but {rows_named(odd)} "
            f"{verb(len(odd), 'has', 'have')} another number of cells; {rows_named(odd[:1])} has "
            f"{len(rows[odd[0] - 1])}.",
            "Give each row as many cells, and put double quotes around a text with a comma. Rows are counted "
            "without the header and empty lines.",
        )
    return {column: [row[index] or None for row in rows] for index, column in enumerate(header)}


def _read_jsonl(name: str, text: str) -> Table:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"The table {name} is not JSON in line {number}: {error}.") from error
        if not isinstance(row, dict):
            raise SourceError(f"The table {name} has no JSON object in line {number}: {line[:40]!r}.")
        rows.append(row)
    columns = dict.fromkeys(column for row in rows for column in row)
    _require_columns(name, len(columns))
    cells, present = len(rows) * len(columns), sum(map(len, rows))
    if cells > max(MOST_CELLS, SPARSEST * present):
        raise SourceError(
            f"The rows of {name} have few columns in common: {present:,} of {counted(cells, 'cell')} "
            f"{verb(present)} given.",
            "Write the same columns in each row.",
        )
    return {column: [row.get(column) for row in rows] for column in columns}


def _read_parquet(name: str, data: bytes) -> Table:
    """Read columns of text, numbers and lists; others, such as embedded images, are left out."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise SourceError(
            f"The table {name} is Parquet, and pyarrow is not installed.",
            "Run: pip install 'bottleneck-features[parquet]'",
        ) from error
    try:
        file = parquet.ParquetFile(arrow.BufferReader(data))
        columns = [
            field.name
            for field in file.schema_arrow
            if not (arrow.types.is_struct(field.type) or arrow.types.is_binary(field.type))
        ]
        return file.read(columns).to_pydict()
    except Exception as error:  # of arrow, which has errors of many classes
        reason = one_line(error).rstrip(".")
        raise SourceError(f"The table {name} cannot be read as Parquet: {reason}.") from error


def encodable(text: str) -> str:
    """Return the text with escapes for what UTF-8 cannot encode: undecodable bytes, lone surrogates."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        raw = text.encode("utf-8", "surrogateescape" if _from_bytes(text) else "backslashreplace")
        return raw.decode("utf-8", "backslashreplace")
    return text


def _from_bytes(text: str) -> bool:
    return all(not "\ud800" <= char <= "\udfff" or "\udc80" <= char <= "\udcff" for char in text)


def storable(text: str) -> bool:
    """Return True for text that a cache can store: valid UTF-8 without NUL."""
    return encodable(text) == text and "\0" not in text


def csv_lines(rows: Iterable[Iterable[object]], raw: bool = False) -> Iterator[str]:
    """Yield the lines of a CSV file. raw : write texts as they are, for programs."""
    for row in rows:
        cells = ("" if value is None else str(value) for value in row)
        yield ",".join(_quoted(text if raw else inert(text)) for text in cells) + "\r\n"


def inert(text: str) -> str:
    """Return a cell that no spreadsheet executes: numbers as they are, other texts by the rule above."""
    return f"'{text}" if _EXECUTED.match(text) and not _NUMBER.fullmatch(text) else text


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if _SEPARATORS.search(text) else text
