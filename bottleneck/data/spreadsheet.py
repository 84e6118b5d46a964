"""Write CSV that a spreadsheet shows as it is, and never executes (OWASP, "CSV Injection").

The rule: a text cell that begins with = + - @ (also their full-width forms), a tab or a line break, and is
no number, gets an apostrophe in front, which a spreadsheet hides. So does one that begins with apostrophes
and then such a character; removing one apostrophe gives back every text. Cells that contain a separator of
any locale are quoted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_EXECUTED = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_SEPARATORS = re.compile(r'[,;"\t\r\n]')


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
