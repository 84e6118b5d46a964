"""`bottleneck predict`: classify images with a head or model."""

from __future__ import annotations

from typing import Any

import click
from rich.console import RenderableType

from bottleneck.cli.options import (
    cache_images_option,
    column_options,
    engine_options,
    flip_option,
    loading_options,
    strict_option,
    trust_options,
)
from bottleneck.cli.terminal import Command, Terminal, shown_prediction, shows_results, table
from bottleneck.names import TOP_CLASSES

ROWS_SHOWN = 20


@click.command(cls=Command)
@click.argument("model", type=click.Path())
@click.argument("sources", type=click.Path(), nargs=-1, required=True)
@click.option(
    "-o", "--output", type=click.Path(), help="Write the predictions to this .csv, .jsonl or .parquet file."
)
@click.option(
    "--raw",
    is_flag=True,
    help="Write texts to CSV as they are, also those that a spreadsheet would execute.",
)
@click.option(
    "--top",
    type=click.IntRange(1),
    default=TOP_CLASSES,
    show_default=True,
    help="Classes listed per sample in JSON, the likeliest first.",
)
@click.option(
    "--probabilities",
    is_flag=True,
    help="Add the probabilities of all classes, in the output file as columns p_CLASS.",
)
@flip_option
@trust_options
@strict_option
@loading_options
@engine_options
@column_options
@cache_images_option
@shows_results
def command(terminal: Terminal, model: str, sources: tuple[str, ...], **options: Any) -> None:
    """Classify the images of SOURCES with MODEL, a head or a model file.

    SOURCES are images, folders, manifests, shards or URLs.
    """
    from bottleneck.models.predict import predict

    result = predict(model, *sources, reporter=terminal, **options)
    shown = result["predictions"][:ROWS_SHOWN]
    columns, rows = ["image", "label", "confidence"], [[*shown_prediction(row)] for row in shown]
    if "reject" in result:
        columns.append("novelty")
        rows = [[*cells, row["novelty"]] for cells, row in zip(rows, shown, strict=True)]
    if "coverage" in result:
        columns.append(f"set, {result['coverage']:.4g}")
        rows = [[*cells, ", ".join(row["set"])] for cells, row in zip(rows, shown, strict=True)]
    parts: list[RenderableType] = [table("Predictions", columns, rows)]
    if len(result["predictions"]) > ROWS_SHOWN:
        parts.append(f"… and {len(result['predictions']) - ROWS_SHOWN:,} more.")
    if "reject" in result:
        count, n = sum(not row["known"] for row in result["predictions"]), len(result["predictions"])
        limit, rate = result["novelty_threshold"], result["reject"]
        parts.append(
            f"Unknown: {count:,} of {n:,}, with a novelty above {limit:.4g}; of images like those of "
            f"training a share of {rate:.4g} is expected there."
        )
    if result["failed"]:
        failed = [(row["image"], row["error"]) for row in result["failed"]]
        parts.append(table("Images without a prediction", ("image", "reason"), failed))
    if result["output"]:
        parts.append(f"Written to {result['output']}")
    terminal.result(result, *parts)
