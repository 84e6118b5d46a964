"""`bottleneck advise`: which transfer suits the data, and why."""

from __future__ import annotations

import json
from typing import Any

import click

from bottleneck.cli.options import flags_of, loading_options, strict_option
from bottleneck.cli.terminal import Command, Terminal, shows_results, table
from bottleneck.files import write_whole
from bottleneck.records import plain
from bottleneck.studies.study_config import LEAST_BUDGET, AdviseConfig

flag = flags_of(AdviseConfig)


@click.command(cls=Command)
@click.argument("cache", type=click.Path())
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    show_default="advice/CACHE",
    help="Folder for the heads and networks that are tried, and for the advice.",
)
@flag(
    "--target",
    show_default="the first with classes",
    help="Target (column of labels) that the advice is for.",
)
@flag(
    "--budget",
    type=click.IntRange(LEAST_BUDGET),
    help="Number of train and val samples that the strategies are tried on.",
)
@loading_options
@flag("--seed", type=int, help="Seed of the draws of samples and images.")
@strict_option
@shows_results
def command(terminal: Terminal, cache: str, **options: Any) -> None:
    """Say which transfer suits the samples of CACHE: scenario, published rules, evidence, what to run next.

    Heads on several blocks, fine-tuning and a network from scratch are tried on a part of the samples; the
    recommendation is what cross-validation and val together choose.
    """
    from bottleneck.report.studies import advice_page
    from bottleneck.studies.advise.advise import advise

    advice = advise(cache, reporter=terminal, **options)
    figure = advice_page(advice, advice.folder / "advice.png")
    values = plain(advice.to_json() | {"figure": str(figure)})
    write_whole(advice.folder / "advice.json", json.dumps(values, ensure_ascii=False).encode())
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
