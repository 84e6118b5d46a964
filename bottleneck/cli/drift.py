"""`bottleneck drift`: are new images like those of a cache?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.console import RenderableType

from bottleneck.cli.completion import complete_node
from bottleneck.cli.options import engine_options, flags_of, input_column_options, loading_options
from bottleneck.cli.terminal import Command, Terminal, shows_results, table
from bottleneck.errors import counted
from bottleneck.studies.study_config import DriftConfig

if TYPE_CHECKING:
    from bottleneck.studies.drift.drift import DriftResult

SHOWN = 12
flag = flags_of(DriftConfig)


@click.command(cls=Command)
@click.argument("cache", type=click.Path())
@click.argument("new", type=click.Path())
@flag("--n", "n", type=click.IntRange(0), help="Number of foreign images to list.")
@flag(
    "--target", show_default="the only one", help="Target (column of labels) whose predictions are compared."
)
@flag("--node", shell_complete=complete_node, help="Node whose features are compared.")
@flag(
    "--permutations", type=click.IntRange(19), help="Permutations of old and new that say what chance does."
)
@flag("--seed", type=int, help="Seed of the folds, of draws and of the permutations.")
@loading_options
@engine_options
@input_column_options
@shows_results
def command(terminal: Terminal, cache: str, new: str, **options: Any) -> None:
    """Say whether the images of NEW are like those of CACHE that heads learn from.

    NEW is a folder of images or a cache of the same network. Drift says that images differ, not that
    predictions are worse: `evaluate` measures that, with labels.
    """
    from bottleneck.studies.drift.drift import drift

    result = drift(cache, new, reporter=terminal, **options)
    terminal.result(result.to_json(), *_shown(result))


def _shown(result: DriftResult) -> list[RenderableType]:
    """Return the verdict, the classes whose shares changed most, and the most foreign images."""
    parts: list[RenderableType] = [result.verdict]
    if result.classes:
        rows = [
            (each["class"], each["old"], each["new"], *each["interval"], "changed" if each["flag"] else "")
            for each in result.classes[:SHOWN]
        ]
        columns = ("class", "old", "new", "change from", "to", "")
        parts.append(table(f"Shares of the predicted classes ({result.target})", columns, rows))
        if len(result.classes) > SHOWN:
            parts.append(
                f"… and {counted(len(result.classes) - SHOWN, 'more class', 'more classes')}; --json has "
                "them all."
            )
    if result.foreign:
        listed = [(each["image"], each["score"], each["beyond"]) for each in result.foreign]
        parts.append(table("The most foreign images", ("image", "distance", "share of old nearer"), listed))
    parts.append(
        f"{100 * result.foreign_share:.1f} % of {counted(result.new, 'new image is', 'new images are')} "
        "farther from the old ones than "
        "99 % of these are from each other."
    )
    if result.failed:
        broken = [(each["image"], each["error"]) for each in result.failed[:SHOWN]]
        parts.append(table("Images that cannot be compared", ("image", "reason"), broken))
    return parts
