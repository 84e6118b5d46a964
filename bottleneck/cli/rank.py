"""`bottleneck rank`: which backbone suits the data, by scores that need no training."""

from __future__ import annotations

from shlex import quote
from typing import Any

import click

from bottleneck.cli.completion import complete_node
from bottleneck.cli.options import flags_of, strict_option
from bottleneck.cli.terminal import Command, Terminal, shows_results, table
from bottleneck.studies.study_config import MEASURES, RankConfig

flag = flags_of(RankConfig)


@click.command(cls=Command)
@click.argument("caches", type=click.Path(), nargs=-1, required=True)
@flag("--node", shell_complete=complete_node, help="Node whose cached features are scored.")
@flag(
    "--target",
    show_default="the first with classes",
    help="Target (column of labels) that the features are scored for.",
)
@flag("--by", type=click.Choice(MEASURES), help="Score that the caches are ordered by.")
@flag("--check", is_flag=True, help="Fit heads too, and correlate the scores with their accuracy.")
@flag("-o", "--output", type=click.Path(), help="Folder for the heads of --check.")
@flag("--seed", type=int, help="Seed of the draw of queries for kNN and of the folds of heads.")
@strict_option
@shows_results
def command(terminal: Terminal, caches: tuple[str, ...], **options: Any) -> None:
    """Rank backbones for a data set: CACHES of the same samples, one a backbone, scored on train."""
    from bottleneck.studies.rank.rank import rank

    ranking = rank(caches, reporter=terminal, **options)
    rows = [
        (each.cache, each.scores.logme, each.scores.h_score, each.scores.leep, each.scores.knn, each.accuracy)
        for each in ranking.ranked
    ]
    taus = [table("Kendall's τ with accuracy", ("score", "τ"), ranking.tau.items())] if ranking.tau else []
    target = f" --target {quote(options['target'])}" if options["target"] else ""
    terminal.result(
        ranking.to_json(),
        table(f"Best first by {ranking.by}", ("cache", "LogME", "H-score", "LEEP", "kNN", "accuracy"), rows),
        *taus,
        f"Next: bottleneck advise {quote(ranking.ranked[0].cache)}{target}",
    )
