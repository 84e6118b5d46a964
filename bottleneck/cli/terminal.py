"""Show progress on stderr, and the result of a command on stdout: tables for people, or one JSON object.

Every command is written as

    @click.command(cls=Command)
    @click.argument("source", type=click.Path())
    @shows_results
    def command(terminal: Terminal, source: str) -> None:
        result = library_call(source, reporter=terminal)
        terminal.result(result.to_json(), table(...))
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from bottleneck.errors import counted
from bottleneck.names import SPLITS
from bottleneck.progress import Reporter, printable, probability
from bottleneck.records import plain
from bottleneck.remote.urls import allow
from bottleneck.report.glyphs import take_note

if TYPE_CHECKING:
    from rich.status import Status

    from bottleneck.training.results import TrainingResult

FILE_WIDTH = 80  # columns of a table that goes to a file or a pipe
NARROW = 17  # columns up to which the cells of a table's column are never broken
LEAST = 12  # columns that a broken cell has at least
MOST_CLASSES = 12  # shown in full; of more, the largest and the smallest


class Terminal(Reporter):
    """The two streams of a command. With `as_json`, stdout gets one JSON object and nothing else."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.started = time.perf_counter()  # before the imports of the command's own work
        self.out = Console(soft_wrap=True, width=None if sys.stdout.isatty() else FILE_WIDTH)
        self.err = Console(stderr=True)
        self.log_epoch: Callable[[Any], None] = lambda record: None  # set for TensorBoard
        self._name = ""  # of the command, while it runs
        self._loading: Status | None = None  # made when it is first shown
        self._drawing = False  # a bar, beside which a line may be told

    @contextmanager
    def loading(self, name: str) -> Iterator[None]:
        """Show on a terminal what command `name` does while it reports nothing: at first it loads."""
        self._name = name
        self._wait("loading libraries, files and the network")
        try:
            yield
        finally:
            self._stop_waiting()

    def _wait(self, what: str) -> None:
        """Show on a terminal that something is being done, until the next report."""
        if self._name and self.err.is_terminal and not self._drawing:
            self._loading = self._loading or self.err.status("")
            self._loading.update(Text(printable(f"{self._name}: {what} …")))
            self._loading.start()

    def _stop_waiting(self) -> None:
        if self._loading is not None:
            self._loading.stop()

    @contextmanager
    def step(
        self, name: str, total: int | None = None, unit: str = "images"
    ) -> Iterator[Callable[[int], None]]:
        """Show one bar on stderr with the rate and the time left."""
        self._stop_waiting()
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(unit)]
        with Bars(*columns, TimeRemainingColumn(), console=self.err) as bars:
            task, self._drawing = bars.add_task(escape(printable(name)), total=total), True
            try:
                yield lambda done: bars.advance(task, done)
            finally:
                self._drawing = False
        self._wait(f"after “{name}”, working on")

    def tell(self, text: str) -> None:
        """Print one line on stderr, with brackets in a path as they are."""
        self._stop_waiting()
        self.err.print(printable(text), markup=False, highlight=False, soft_wrap=True)
        self._wait("working")

    def epoch(self, record: Any) -> None:
        """Pass the record of an epoch to `log_epoch`."""
        self.log_epoch(record)

    def result(
        self, values: dict[str, Any], *shown: RenderableType, last: Sequence[RenderableType] = ()
    ) -> None:
        """Print `values` as JSON, or for people `shown`, a line for each note in `values`, and `last`.

        A note on characters that the figures drawn so far lack is added to them.
        """
        self._stop_waiting()
        if lacking := take_note():
            values = {**values, "notes": [*values.get("notes", ()), lacking]}
        if self.as_json:
            line = json.dumps(plain(values), allow_nan=False).replace("\x7f", r"\u007f")
            print(line, flush=True)  # ASCII without control characters, for any stream
        else:
            for part in shown:
                self._show(part)
            for note in values.get("notes", ()):
                message = note["message"] if isinstance(note, dict) else note
                self._show(f"Note: {message}")
            for part in last:
                self._show(part)

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
    """Shows units per second over the recent past; none of a step below a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed or not self.unit or (task.elapsed or 0) < 1:
            return Text("")
        if speed < 0.1:
            return Text(f"{1 / speed:.0f} s each")
        return Text(f"{speed:.0f} {self.unit}/s" if speed >= 10 else f"{speed:.1f} {self.unit}/s")


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
            take_note()  # of figures that this process drew before: no part of this command's result
            terminal = Terminal(as_json)
            with terminal.loading(click.get_current_context().info_name or ""):
                function(terminal, *args, **options)

    return command


class FittedTable:
    """A table for people that fits the width at hand, whatever it holds.

    It has frames where they fit, else only a line below the head, and long texts are broken; where even that
    is too wide, each row is a paragraph. Without rows it is a line that says so.
    """

    def __init__(self, title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
        lines = [list(row) for row in rows]
        self.title, self.columns = printable(title), [printable(column) for column in columns]
        self.right = [all(_is_number(line[i]) for line in lines) for i in range(len(self.columns))]
        self.rows = [[_cell(value) for value in line] for line in lines]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        width = options.max_width
        if not self.rows:
            yield from Text(f"{self.title}: none.").wrap(console, width, overflow="fold")
            return
        yield from Text(self.title, style="italic").wrap(console, width, overflow="fold")
        count = len(self.columns)
        for framed, between in ((True, 3 * count + 1), (False, 2 * count)):
            widths = self._widths(width - between)
            if widths:
                yield self._table(widths, framed)
                return
        for row in self.rows:
            yield from Text(row[0] or self.columns[0], style="bold").wrap(console, width, overflow="fold")
            yield from self._paragraph(console, row, width - 2)

    def _paragraph(self, console: Console, row: list[str], width: int) -> Iterator[Text]:
        """Yield the lines of a row but its first cell; a cell stays beside its name where a line has both."""
        lines = [""]
        for name, cell in zip(self.columns[1:], row[1:], strict=True):
            if not cell:
                continue
            part = f"{name} {cell}".strip()
            if lines[-1] and cell_len(f"{lines[-1]}; {part}") > width:
                lines.append("")
            lines[-1] += f"; {part}" if lines[-1] else part
        for line in lines:
            yield from (Text(f"  {part}") for part in Text(line).wrap(console, width, overflow="fold"))

    def _widths(self, room: int) -> list[int]:
        """Return the width of each column within `room`; [] where long texts would get too little of it."""
        natural = [max(map(cell_len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        if sum(natural) <= room:
            return natural
        long = sorted((i for i, width in enumerate(natural) if width > NARROW), key=lambda i: natural[i])
        room -= sum(width for width in natural if width <= NARROW)
        for left, i in zip(range(len(long), 0, -1), long, strict=True):
            natural[i] = min(natural[i], room // left)
            room -= natural[i]
        return natural if long and min(natural[i] for i in long) >= LEAST else []

    def _table(self, widths: list[int], framed: bool) -> Table:
        drawn = Table(box=box.HEAVY_HEAD if framed else box.SIMPLE_HEAD, pad_edge=framed, show_edge=framed)
        if not framed:
            drawn.padding = (0, 1, 0, 0)
        for name, right, width in zip(self.columns, self.right, widths, strict=True):
            drawn.add_column(Text(name), justify="right" if right else "left", overflow="fold", width=width)
        for row in self.rows:
            drawn.add_row(*map(Text, row))
        return drawn


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> FittedTable:
    """Return a table for people; numbers are aligned right, markup in text is shown as text."""
    return FittedTable(title, columns, rows)


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        return bool(re.fullmatch(r"[<>]? ?[-+−]?[\d,]*\.?\d+", value))
    return isinstance(value, int | float) or value is None


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        if abs(value) >= 1e4 and math.isfinite(value):
            return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.4g}"
        return "> 0.9999" if 0.99995 <= value < 1 else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return printable(str(value))


def link_to(what: str, path: str, more: str = "") -> Text:
    """Return a line `WHAT: PATH MORE` whose path a terminal opens by a click.

    A path with characters that steer a terminal gets no link: what is opened is what is read.
    """
    shown = printable(path)
    style = f"link {Path(os.path.abspath(path)).as_uri()}" if shown == path else ""
    return Text.assemble(f"{what}: ", (shown, style), printable(more))


def told_apart(names: Sequence[str]) -> list[str]:
    """Return names for a table: in quotes those that differ from another one only in white space."""
    bare = ["".join(name.split()) for name in names]
    counts = Counter(bare)
    return [f'"{name}"' if counts[key] > 1 else name for name, key in zip(names, bare, strict=True)]


def shown_prediction(record: dict[str, Any]) -> tuple[Any, ...]:
    """Return image, label or labels, and confidence of a record of `predict`, as cells of a table."""
    label, confidence = record["label"], record["confidence"]
    named = (", ".join(label) or "none") if isinstance(label, list) else label
    return record["image"], named, None if confidence is None else probability(confidence)


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
        f"{counted(len(result.epochs) - 1, 'epoch')} at {result.images_per_second:.0f} images/s. Curves: "
        f"{figure}",
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
            yield f"Target {name}: {counted(target['unlabelled'], 'sample')} without a label."
    if not data["targets"]:
        counts = ", ".join(f"{data['splits'][name]:,} {name}" for name in splits)
        yield f"Targets: none. Samples: {counts or 'none'}"
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
    names = told_apart([label for label, _ in ranked])
    counted = [[counts[split] for split in splits] for _, counts in ranked]
    rows = [(name, *counts) for name, counts in zip(names, counted, strict=True)]
    return table(title, ("class", *splits), rows)
