"""Show progress on stderr, and the result of a command on stdout: tables for people, or one JSON object.

Every command is written as

    @click.command(cls=Command)
    @click.argument("source")
    @shows_results
    def command(terminal: Terminal, source: str) -> None:
        result = library_call(source, reporter=terminal)
        terminal.result(result.to_json(), table(...))
"""

from __future__ import annotations

import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from bottleneck.cli.streams import printable
from bottleneck.data.untrusted import allow
from bottleneck.errors import Note
from bottleneck.names import SPLITS
from bottleneck.progress import Reporter

if TYPE_CHECKING:
    from bottleneck.training.results import TrainingResult

FILE_WIDTH = 120  # characters of a table that goes to a file or a pipe
MOST_CLASSES = 12  # shown in full; of more, the largest and the smallest


class Terminal(Reporter):
    """The two streams of a command. With `as_json`, stdout gets one JSON object and nothing else."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.started = time.perf_counter()  # before the imports of the command's own work
        self.out = Console(soft_wrap=True, width=None if sys.stdout.isatty() else FILE_WIDTH)
        self.err = Console(stderr=True)
        self.log_epoch: Callable[[Any], None] = lambda record: None  # set for TensorBoard

    @contextmanager
    def step(
        self, name: str, total: int | None = None, unit: str = "images"
    ) -> Iterator[Callable[[int], None]]:
        """Show one bar on stderr with the rate and the time left."""
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(unit)]
        with Bars(*columns, TimeRemainingColumn(), console=self.err) as bars:
            task = bars.add_task(escape(printable(name)), total=total)
            yield lambda done: bars.advance(task, done)

    def tell(self, text: str) -> None:
        """Print one line on stderr, with brackets in a path as they are."""
        self.err.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def epoch(self, record: Any) -> None:
        """Pass the record of an epoch to `log_epoch`."""
        self.log_epoch(record)

    def result(self, values: dict[str, Any], *shown: RenderableType) -> None:
        """Print `values` as JSON, or `shown` for people with a line for each of the notes in `values`."""
        if self.as_json:
            line = json.dumps(plain(values), allow_nan=False).replace("\x7f", r"\u007f")
            print(line, flush=True)  # ASCII without control characters, for any stream
        else:
            for part in shown:
                self._show(part)
            for note in values.get("notes", ()):
                message = note["message"] if isinstance(note, dict) else note
                self._show(f"Note: {message}")

    def _show(self, part: RenderableType) -> None:
        line = printable(part) if isinstance(part, str) else part
        self.out.print(line, markup=False, highlight=False)


class Command(click.Command):
    """A command that refuses an option which is given twice and takes one value.

    click would take the later value and say nothing. Any spelling counts, and so do two equal values.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        rest = super().parse_args(ctx, args)  # `--help` and other errors come first
        _, _, order = self.make_parser(ctx).parse_args(given)
        single = [item for item in order if isinstance(item, click.Option) and not item.multiple]
        for option in single:
            if [item.name for item in single].count(option.name) > 1:
                spellings = " or ".join(option.opts + option.secondary_opts)
                raise click.UsageError(f"{spellings} is given more than once. Give it once.", ctx)
        return rest


class _Rate(ProgressColumn):
    """Shows units per second over the recent past."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(
            f"{speed:.0f} {self.unit}/s" if speed and speed >= 10 else f"{speed or 0:.1f} {self.unit}/s"
        )


def shows_results(function: Callable[..., None]) -> Callable[..., None]:
    """Add `--json`, `--debug` and what a stranger's list may name; pass a `Terminal` as first argument."""

    @click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else there."
    )
    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @click.option(
        "--allow-local", is_flag=True, help="Trust a cache or a list from the web with local files."
    )
    @click.option(
        "--allow-remote", is_flag=True, help="Trust a cache or a list from the web with other hosts."
    )
    @functools.wraps(function)
    def command(
        *args: Any, as_json: bool, debug: bool, allow_local: bool, allow_remote: bool, **options: Any
    ) -> None:
        with allow(local=allow_local, remote=allow_remote):
            function(Terminal(as_json), *args, **options)

    return command


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """Return a table for people; numbers are aligned right, markup in text is shown as text."""
    lines = [list(row) for row in rows]
    drawn = Table(title=Text(printable(title)), title_justify="left")
    for i, column in enumerate(columns):
        numeric = all(isinstance(line[i], int | float) or line[i] is None for line in lines)
        drawn.add_column(Text(printable(column)), justify="right" if numeric else "left", overflow="fold")
    for line in lines:
        drawn.add_row(*(Text(_cell(value)) for value in line))
    return drawn


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return printable(str(value))


def plain(value: Any) -> Any:
    """Return a value for JSON: a note is an object, numpy values are Python's, NaN and infinity null."""
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


def show_result(terminal: Terminal, result: TrainingResult, title: str) -> None:
    """Draw the curves beside the model and print the result of a training."""
    from bottleneck.report.curves import training_curves

    figure = training_curves(
        result.epochs,
        Path(result.model).with_suffix(".history.png"),
        result.best_epoch,
        title,
        result.head_accuracy.get("val"),
    )
    rows = []
    for split, accuracy in result.finetuned_accuracy.items():
        low, high = result.accuracy_ci95[split]
        mark = "chose the epoch" if split == result.chosen_on else ""
        head = result.head_accuracy.get(split)
        rows.append((split, result.n[split], head, accuracy, f"{low:.4f} … {high:.4f}", mark))
    kept = {
        "finetuned": f"Kept: the network of epoch {result.best_epoch}.",
        "head": "Kept: the head. No epoch of training was better on val.",
        "scratch": f"Kept: the network of epoch {result.best_epoch}.",
    }[result.kept]
    terminal.result(
        {**result.to_json(), "figure": str(figure)},
        table(title, ("split", "samples", "head", "kept", "95 % interval", ""), rows),
        kept,
        f"{result.parameters:,} parameters, classifier {' → '.join(result.classifier)}.",
        f"{len(result.epochs) - 1} epochs at {result.images_per_second:.0f} images/s. Curves: {figure}",
        f"Model: {result.model}. Next: bottleneck predict {quote(result.model)} IMAGES",
    )


def views_text(views: dict[str, Any] | None) -> str:
    """Return what the views of a node are, of which this is the recipe."""
    if views is None:
        return "–"
    return "1, mirrored" if views.get("mirror") else f"{views['count']}, drawn"


def data_sheet_lines(data: dict[str, Any]) -> Iterator[RenderableType]:
    """Yield the table of classes by split of each target, then lines on columns, files and failures."""
    splits = [name for name in SPLITS if data["splits"].get(name)]
    for name, target in data["targets"].items():
        if target["kind"] == "regression":
            low, high = target.get("range", (None, None))
            yield f"Target {name}: numbers from {low} to {high}, {target['labelled']:,} labelled."
        else:
            yield _class_table(name, target, data["classes"][name], splits)
        if target["unlabelled"]:
            yield f"Target {name}: {target['unlabelled']:,} samples without a label."
    if not data["targets"]:
        yield "Targets: none. Samples: " + ", ".join(f"{data['splits'][name]:,} {name}" for name in splits)
    used = {role: names for role, names in data["columns"].items() if names}
    if used:
        yield "Columns: " + "; ".join(f"{role} {', '.join(names)}" for role, names in used.items())
    if data["ignored"]:
        yield "Ignored files: " + ", ".join(
            f"{count:,} {suffix}" for suffix, count in data["ignored"].items()
        )
    for reason, count in list(data["failures"].items())[:5]:
        yield f"Failed: {count:,} × {reason}"


def _class_table(
    name: str, target: dict[str, Any], classes: dict[str, dict[str, int]], splits: list[str]
) -> RenderableType:
    """Return samples by class and split; of many classes the largest and the smallest half of what fits."""
    ranked = list(classes.items())
    what = "classes" if target["kind"] == "class" else "labels"
    title = f"Target {name}: {target['kind']}, {len(ranked):,} {what}"
    if len(ranked) > MOST_CLASSES:
        ranked.sort(key=lambda item: -sum(item[1].values()))
        half = MOST_CLASSES // 2
        title += f"; the largest {half} and the smallest {half}"
        ranked = ranked[:half] + ranked[-half:]
    rows = [(label, *(counts[split] for split in splits)) for label, counts in ranked]
    return table(title, ("class", *splits), rows)
