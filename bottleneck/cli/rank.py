"""`bottleneck rank`: which backbone suits the data, by scores that need no training."""

from __future__ import annotations

from shlex import quote

import click

from bottleneck.cli.terminal import Terminal, shows_results, table


@click.command()
@click.argument("caches", type=click.Path(), nargs=-1, required=True)
@click.option("--node", default="bottleneck", show_default=True, help="Which features are scored.")
@click.option("--target", help="[default: the first with classes]")
@click.option(
    "--by", type=click.Choice(["logme", "h_score", "leep", "knn"]), default="logme", show_default=True
)
@click.option("--check", is_flag=True, help="Fit heads too, and correlate the scores with their accuracy.")
@click.option(
    "-o", "--output", type=click.Path(), default="heads", show_default=True, help="Folder for heads."
)
@click.option("--seed", type=int, default=0, show_default=True)
@shows_results
def command(terminal: Terminal, caches: tuple[str, ...], **options: object) -> None:
    """Rank backbones for a data set: CACHES of the same samples, one a backbone, scored on train."""
    from bottleneck.studies.rank.rank import rank

    found = rank(caches, reporter=terminal, **options)
    rows = [
        (each.cache, each.scores.logme, each.scores.h_score, each.scores.leep, each.scores.knn, each.accuracy)
        for each in found.ranked
    ]
    taus = [table("Kendall's τ with accuracy", ("score", "τ"), found.tau.items())] if found.tau else []
    terminal.result(
        found.to_json(),
        table(f"Best first by {found.by}", ("cache", "LogME", "H-score", "LEEP", "kNN", "accuracy"), rows),
        *taus,
        f"Next: bottleneck advise {quote(found.ranked[0].cache)}",
    )
