"""What a command shows: progress on stderr, tables for people or one JSON object on stdout.

Every command is written as

    @click.command()
    @click.argument("source")
    @shows_results
    def command(terminal: Terminal, source: str) -> None:
        result = library_call(source, progress=terminal.progress)
        terminal.result(result.to_json(), table(...))
"""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

FILE_WIDTH = 120  # characters of a table that goes to a file or a pipe


class Terminal:
    """The two streams of a command. `as_json`: stdout carries one JSON object and nothing else."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.out = Console(soft_wrap=True, width=None if sys.stdout.isatty() else FILE_WIDTH)
        self.err = Console(stderr=True)

    @contextmanager
    def progress(
        self, step: str, total: int | None = None, unit: str = "images"
    ) -> Iterator[Callable[[int], None]]:
        """One bar on stderr with rate and time left (the library's `Progress`)."""
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(unit)]
        with Bars(*columns, TimeRemainingColumn(), console=self.err) as bars:
            task = bars.add_task(step, total=total)
            yield lambda done: bars.advance(task, done)

    def tell(self, text: str) -> None:
        """One line on stderr, as it is: brackets in a path are no markup."""
        self.err.print(text, markup=False, highlight=False, soft_wrap=True)

    def result(self, values: dict[str, Any], *shown: RenderableType) -> None:
        """Print `values` as JSON, or `shown` for people."""
        if self.as_json:
            click.echo(json.dumps(plain(values), ensure_ascii=False, allow_nan=False))
        else:
            for part in shown:
                self.out.print(part, markup=False, highlight=False)


class _Rate(ProgressColumn):
    """Units per second over the recent past."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(
            f"{speed:.0f} {self.unit}/s" if speed and speed >= 10 else f"{speed or 0:.1f} {self.unit}/s"
        )


def shows_results(function: Callable[..., None]) -> Callable[..., None]:
    """Add `--json` and `--debug`, and hand the command its `Terminal` as first argument."""

    @click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else there."
    )
    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @functools.wraps(function)
    def command(*args: Any, as_json: bool, debug: bool, **options: Any) -> None:
        function(Terminal(as_json), *args, **options)

    return command


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """A table for people; numbers are set to the right, text is shown as it is (no markup)."""
    rows = [list(row) for row in rows]
    drawn = Table(title=Text(title), title_justify="left")
    for i, column in enumerate(columns):
        numeric = all(isinstance(row[i], int | float) or row[i] is None for row in rows)
        drawn.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(_cell(value)) for value in row))
    return drawn


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def plain(value: Any) -> Any:
    """JSON-ready: numpy values become Python's, tuples lists; what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return str(value)
