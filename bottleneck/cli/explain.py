"""`bottleneck explain`: where in an image a classifier looked."""

from __future__ import annotations

from typing import Any

import click
from rich.console import RenderableType

from bottleneck.cli.options import column_options, flags_of, loading_options, strict_option
from bottleneck.cli.terminal import Command, Terminal, shows_results, table
from bottleneck.models.config import ExplainConfig

ROWS_SHOWN = 20
flag = flags_of(ExplainConfig)


@click.command(cls=Command)
@click.argument("model", type=click.Path())
@click.argument("sources", type=click.Path(), nargs=-1, required=True)
@flag(
    "-o",
    "--output",
    type=click.Path(),
    help="PNG file of the contact sheet; the overlays go into the folder of its name without .png.",
)
@flag(
    "--class",
    "class_names",
    multiple=True,
    help="Class or label to explain beside the predicted one; may be repeated.",
)
@flag(
    "--exact",
    is_flag=True,
    help="Explain a fine-tuned model at its last map: coarser, but exact. Refuse what cannot be exact.",
)
@flag("--flip", is_flag=True, help="Explain the mean of each image and of its mirror image.")
@flag(
    "--reference",
    type=click.Path(),
    help="Cache (its train split) or folder of images. What their mean has at a place contributes nothing "
    "there. By default only the mean over all places is known, from the file of the model.",
)
@strict_option
@loading_options
@column_options
@shows_results
def command(terminal: Terminal, model: str, sources: tuple[str, ...], **options: Any) -> None:
    """Show which places of the images of SOURCES speak for the class that MODEL predicts.

    MODEL is a head or a model file. SOURCES are images, folders, manifests, shards or URLs.
    """
    from bottleneck.report.explain import explain

    result = explain(model, *sources, reporter=terminal, **options)
    shown = result.maps[:ROWS_SHOWN]
    several = any(len(one.images) > 1 for one in shown)
    rest = any(one.unplaced or not one.exact for one in shown)
    columns = ["image", *(["no."] if several else []), "class", "logit", "intercept", "places"]
    rows: list[list[Any]] = []
    for one in shown:
        other = one.logit - one.intercept - sum(one.sums)
        for number, (image, places) in enumerate(zip(one.images, one.sums, strict=True), 1):
            label = f"{one.label} (predicted)" if one.predicted else one.label
            numbers = [round(value, 3) for value in (one.logit, one.intercept, places, *([other] * rest))]
            rows.append([image, *([number] if several else []), label, *numbers])
    title = "Where the logits come from"
    parts: list[RenderableType] = [table(title, [*columns, *(["other"] if rest else [])], rows)]
    for one in (one for one in shown if one.unplaced):
        terms = ", ".join(f"{name} {value:+.3f}" for name, value in one.unplaced.items())
        parts.append(f"{one.sample}, {one.label}: {terms}")
    if len(result.maps) > ROWS_SHOWN:
        parts.append(f"… and {len(result.maps) - ROWS_SHOWN:,} more; --json has them all.")
    if result.failed:
        parts.append(table("Images without an explanation", ("image", "reason"), result.failed.items()))
    if result.sheet:
        folder = result.paths[0][0].rpartition("/")[0]
        parts.append(f"Sheet: {result.sheet}. Overlays at the images' own size: {folder}/")
    terminal.result(result.to_json() if terminal.as_json else {"notes": result.notes}, *parts)
