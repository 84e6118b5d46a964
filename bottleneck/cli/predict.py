"""`bottleneck predict`: classify images with a head or model."""

from __future__ import annotations

import click

from bottleneck.cli.options import column_options, engine_options
from bottleneck.cli.terminal import Terminal, shows_results, table

ROWS_SHOWN = 20


@click.command()
@click.argument("model", type=click.Path())
@click.argument("sources", nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(), help="Write to this .csv, .jsonl or .parquet file.")
@click.option("--top", type=click.IntRange(1), default=5, help="Classes listed per image in JSON.")
@click.option("--weights", type=click.Path(), help="The weights file of the backbone, if it came from one.")
@click.option(
    "--trust-code", is_flag=True, help="Import a backbone that the model names as package.module:function."
)
@engine_options
@column_options
@shows_results
def command(terminal: Terminal, model: str, sources: tuple[str, ...], **options: object) -> None:
    """Classify the images of SOURCES with MODEL, a head or a model file.

    SOURCES are images, folders, manifests, shards or URLs.
    """
    from bottleneck.models.predict import predict

    result = predict(model, *sources, reporter=terminal, **options)
    rows = [(row["image"], row["label"], row["confidence"]) for row in result["predictions"][:ROWS_SHOWN]]
    parts = [table("Predictions", ("image", "label", "confidence"), rows)]
    if len(result["predictions"]) > ROWS_SHOWN:
        parts.append(f"… and {len(result['predictions']) - ROWS_SHOWN:,} more.")
    if result["failed"]:
        failed = [(row["image"], row["error"]) for row in result["failed"]]
        parts.append(table("Images without a prediction", ("image", "reason"), failed))
    if result["output"]:
        parts.append(f"Written to {result['output']}")
    terminal.result(result, *parts)
