"""`bottleneck compare`: how deep to unfreeze, from which start, and is transfer worth it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bottleneck.cli.completion import complete_node
from bottleneck.cli.options import (
    classes_option,
    flags_of,
    labels_options,
    loading_options,
    regression_option,
    strict_option,
)
from bottleneck.cli.terminal import Command, Terminal, shows_results, table
from bottleneck.cli.training_options import training_options
from bottleneck.names import SMALL_CNN_DEPTH
from bottleneck.training.config import ALL, INITS, CompareConfig


class Several(click.ParamType):
    """Values with commas between them; numbers become numbers."""

    name = "a,b,…"

    def __init__(self, choices: tuple[str, ...] = ()) -> None:
        self.choices = choices

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int | str, ...]:
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in str(value).split(",") if word.strip()]
        strange = [word for word in words if self.choices and not (word in self.choices or word.isdigit())]
        if not words or strange:
            expected = (
                f"numbers, {' or '.join(self.choices)}" if self.choices else "values with commas between"
            )
            self.fail(f"{', '.join(strange) or value!r} is not expected here: {expected}.", param, ctx)
        return tuple(dict.fromkeys(int(word) if word.isdigit() else word for word in words))


flag = flags_of(CompareConfig)


@click.command(cls=Command)
@click.argument("cache", type=click.Path())
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(),
    show_default="compare/CACHE",
    help="Folder for the runs and the picture.",
)
@flag(
    "--unfreeze",
    type=Several(),
    help="What to unfreeze in turn: numbers of blocks (0 is the head alone), names of blocks, or all.",
)
@flag("--init", type=Several(INITS), help="Where the last layer starts: at the head, or at random weights.")
@click.option("--scratch", "from_scratch", is_flag=True, help="Also train the small CNN from random weights.")
@click.option(
    "--depths",
    type=Several(),
    default=(SMALL_CNN_DEPTH,),
    show_default=True,
    help="Numbers of blocks of the small CNN that --scratch trains.",
)
@flag("--shots", type=Several((ALL,)), help="Numbers of train samples per class to train on, or all.")
@flag("--seeds", type=click.IntRange(1), help="Number of runs of each variant.")
@flag(
    "--target", show_default="the only one", help="Target (column of labels) to learn, if there are several."
)
@labels_options
@classes_option
@regression_option
@flag("--node", shell_complete=complete_node, help="Node whose cached features the heads take.")
@loading_options
@training_options(CompareConfig)
@strict_option
@shows_results
def command(
    terminal: Terminal,
    cache: str,
    folder: str | None,
    from_scratch: bool,
    depths: tuple[int, ...],
    **options: Any,
) -> None:
    """Compare how many blocks to train, from the head or from a random last layer, on the data of CACHE.

    Val chooses, with all samples: a variant replaces a simpler one if it is better beyond the noise. Finished
    runs are saved: a command that was interrupted continues where it was when it is run again.
    """
    from bottleneck.studies.compare.compare import compare

    scratch = depths if from_scratch else ()
    result = compare(cache, folder, scratch=scratch, reporter=terminal, **options)
    from bottleneck.report.curves import comparison

    figure = comparison(result, Path(result.folder) / "compare.png")
    rows = [
        (
            row.name,
            row.shots,
            row.seeds,
            row.accuracy["val"],
            row.accuracy.get("test"),
            "{:.4f} … {:.4f}".format(*row.interval),
            round(row.seconds, 1),
            "chosen" if row == result.chosen else "",
        )
        for row in result.rows
    ]
    shown = f"95 % interval, {result.measured_on}"
    columns = ("what", "shots", "seeds", "val (chose)", "test", shown, "seconds a run", "")
    terminal.result(
        {**result.to_json(), "figure": str(figure)},
        table("Means over seeds; val chose the epoch of each run, and the row", columns, rows),
        *result.rule,
        *(f"{item.question} {item.answer}" for item in result.answers),
        f"Picture: {figure}",
    )
