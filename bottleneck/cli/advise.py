"""`bottleneck advise`: which transfer suits the data, and why."""

from __future__ import annotations

import json
from pathlib import Path

import click

from bottleneck.cli.terminal import Terminal, plain, shows_results, table


@click.command()
@click.argument("cache", type=click.Path())
@click.option("-o", "--output", type=click.Path(), help="Folder of what is tried. [default: advice/CACHE]")
@click.option("--target", help="[default: the first with classes]")
@click.option("--budget", type=click.IntRange(40), default=2000, show_default=True, help="Samples to try on.")
@click.option("--weights", help="The backbone's weights file, where the cache was made with one.")
@click.option(
    "--trust-code", is_flag=True, help="Import a backbone that CACHE names as package.module:function."
)
@click.option("--seed", type=int, default=0, show_default=True)
@shows_results
def command(terminal: Terminal, cache: str, **options: object) -> None:
    """Say which transfer suits the samples of CACHE: scenario, published rules, evidence, what to run next.

    Heads on several blocks, fine-tuning and a network from scratch are tried on a part of the samples; the
    recommendation is what was best on val.
    """
    from bottleneck.report.advice import advice_page
    from bottleneck.studies.advise.advise import advise

    advice = advise(cache, reporter=terminal, **options)
    figure = advice_page(advice, advice.folder / "advice.png")
    values = plain(advice.to_json() | {"figure": str(figure)})
    Path(advice.folder / "advice.json").write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    splits = [split for split, count in advice.tried.items() if count]
    tried = [
        (each.what, *(each.accuracy.get(split) for split in splits), round(each.seconds, 1))
        for each in advice.attempts
    ]
    nodes = [
        (head["node"], head["cv_accuracy"], head["accuracy"]["val"], scores.logme, scores.h_score, scores.knn)
        for head in advice.heads
        for scores in [advice.scores[head["node"]]]
    ]
    terminal.result(
        values,
        *(f"• {sentence}" for sentence in advice.text),
        table("Tried", ("strategy", *splits, "seconds"), tried),
        table("Linear heads", ("node", "cv accuracy", "val", "LogME", "H-score", "kNN"), nodes),
        f"One page: {figure}",
        f"Next: {advice.chosen.command}",
    )
