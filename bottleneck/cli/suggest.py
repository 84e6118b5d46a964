"""`bottleneck suggest`: which images to label next."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING, Any

import click
from rich.console import RenderableType

from bottleneck.cli.completion import complete_node
from bottleneck.cli.options import (
    engine_options,
    flags_of,
    input_column_options,
    loading_options,
    strict_option,
)
from bottleneck.cli.terminal import Command, Terminal, shows_results, table
from bottleneck.errors import counted
from bottleneck.studies.study_config import SuggestConfig

if TYPE_CHECKING:
    from bottleneck.studies.suggest.suggest import SuggestResult

SHOWN = 20
flag = flags_of(SuggestConfig)


@click.command(cls=Command)
@click.argument("cache", type=click.Path())
@click.argument("unlabelled", required=False, type=click.Path())
@flag("--n", "n", type=click.IntRange(1), help="Number of images to suggest.")
@flag("-o", "--output", type=click.Path(), help="Write the list to this .csv file, for `fit-head --labels`.")
@flag("--target", show_default="the only one", help="Target (column of labels) to learn.")
@flag("--node", shell_complete=complete_node, help="Node whose features are used.")
@flag("--cv", type=click.IntRange(2), help="Number of folds of the head that is fitted.")
@flag("--seed", type=int, help="Seed of the folds and of all draws.")
@strict_option
@loading_options
@engine_options
@input_column_options
@shows_results
def command(terminal: Terminal, cache: str, unlabelled: str | None, **options: Any) -> None:
    """Say which images of UNLABELLED to label next, after a backtest on the labels of CACHE.

    UNLABELLED is a folder of images or a cache of the same network; without it, the samples of CACHE that
    have no label are meant.
    """
    from bottleneck.studies.suggest.suggest import suggest

    result = suggest(cache, unlabelled, reporter=terminal, **options)
    terminal.result(result.to_json(), *_shown(result))


def _shown(result: SuggestResult) -> list[RenderableType]:
    """Return the verdict of the backtest, the outlook, and the head of the list."""
    parts: list[RenderableType] = [f"Backtest. {result.backtest['verdict']}"]
    if result.backtest["done"]:
        rows = [(each["labels"], each["random"], each["selector"]) for each in result.backtest["rounds"]]
        parts.append(table("Accuracy on samples held aside", ("labels", "at random", "as suggested"), rows))
    parts += _outlook(result)
    columns = ("image", "predicted", "score", "reason")
    listed = [[each[column] for column in columns] for each in result.suggestions[:SHOWN]]
    title = f"To label next, of {counted(result.candidates, 'image')} without a label"
    parts.append(table(title, columns, listed))
    if len(result.suggestions) > SHOWN:
        parts.append(f"… and {len(result.suggestions) - SHOWN:,} more; -o writes them all.")
    if result.failed:
        broken = [(each["image"], each["error"]) for each in result.failed[:SHOWN]]
        parts.append(table("Images that cannot be suggested", ("image", "reason"), broken))
    return [*parts, *_next(result)]


def _outlook(result: SuggestResult) -> list[RenderableType]:
    if result.outlook is None:
        return ["More labels: the labels are too few for a curve that could be tested."]
    expected = [
        (f"{each['factor']} × {result.outlook['labels']:,}", each["accuracy"], *each["interval"])
        for each in result.outlook["expected"]
    ]
    miss = 100 * result.outlook["miss"]
    return [
        table("Accuracy to expect of more labels", ("labels", "accuracy", "2.5 %", "97.5 %"), expected),
        f"The curve without its last point missed that point by {miss:+.1f} points of accuracy. The labels "
        "are those of a draw at random.",
    ]


def _next(result: SuggestResult) -> list[str]:
    path = result.files.get("output")
    if path is None:
        return ["Next: the same command with -o to_label.csv"]
    lines = [
        f"{path} has the suggested images first, then all that have a label. Fill in the column "
        f"{result.target!r}."
    ]
    target = quote(result.target)  # its names may be numbers, which are read as quantities without --classes
    learn = f"--labels {quote(path)} --target {target} --classes {target}"
    if result.features == result.cache:
        return [*lines, f"Next: bottleneck fit-head {quote(result.cache)} {learn}"]
    merge = f"bottleneck cache merge {quote(result.cache)} {quote(result.features)} -o merged.h5"
    return [*lines, f"Next: {merge}", f"      bottleneck fit-head merged.h5 {learn}"]
