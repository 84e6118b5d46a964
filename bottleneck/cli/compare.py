"""`bottleneck compare`: how deep to unfreeze, from which start, and is transfer worth it."""

from __future__ import annotations

from pathlib import Path

import click

from bottleneck.cli.options import labels_options, training_options
from bottleneck.cli.terminal import Terminal, shows_results, table


class Several(click.ParamType):
    """Values with commas between them; numbers become numbers."""

    name = "a,b,…"

    def __init__(self, choices: tuple[str, ...] = ()) -> None:
        self.choices = choices

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple:
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


@click.command()
@click.argument("cache", type=click.Path())
@click.option("-o", "--output", "folder", type=click.Path(), help="Folder for runs. [default: compare/CACHE]")
@click.option(
    "--unfreeze", type=Several(), default="0,1,2", show_default=True, help="Blocks; all; a block's name."
)
@click.option("--init", type=Several(("head", "random")), default="head,random", show_default=True)
@click.option("--scratch", "from_scratch", is_flag=True, help="Also train the small CNN from nothing.")
@click.option("--depths", type=Several(), default="4", show_default=True, help="Its blocks, with --scratch.")
@click.option(
    "--shots", type=Several(("all",)), default="all", show_default=True, help="Train samples per class."
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each.")
@click.option("--target", help="Which labels, where there are several.")
@labels_options
@click.option("--node", default="bottleneck", show_default=True, help="Features that the heads take.")
@click.option("--weights", help="The backbone's weights file, where the cache was made with one.")
@click.option(
    "--trust-code", is_flag=True, help="Import a backbone that CACHE names as package.module:function."
)
@training_options
@shows_results
def command(
    terminal: Terminal,
    cache: str,
    folder: str | None,
    from_scratch: bool,
    depths: tuple[int, ...],
    **options: object,
) -> None:
    """Try head only, one block, two … from the head and from a random last layer, on the data of CACHE.

    What is best on val is chosen, with all samples; runs that are done are kept, so the command can be
    interrupted and given again.
    """
    from bottleneck.report.comparison import comparison
    from bottleneck.training.compare import compare

    options = {name: value for name, value in options.items() if value is not None}
    scratch = depths if from_scratch else ()
    result = compare(cache, folder, scratch=scratch, reporter=terminal, **options)
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
        *(f"{item.question} {item.answer}" for item in result.answers),
        *(f"Note: {note}" for note in result.notes),
        f"Picture: {figure}",
    )
