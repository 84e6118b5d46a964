"""`bottleneck explain`: where in an image a classifier looked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import RenderableType

from bottleneck.backbones.recipe import LoadOptions
from bottleneck.cli.options import (
    cache_images_option,
    column_options,
    flags_of,
    loading_options,
    strict_option,
)
from bottleneck.cli.terminal import Command, Terminal, shows_results, table
from bottleneck.models.config import ExplainConfig
from bottleneck.records import config_from

if TYPE_CHECKING:
    from bottleneck.models.because import Because
    from bottleneck.report.explain import Explanations

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
@click.option(
    "--because",
    type=click.Path(),
    help="Cache that the head was fitted on: also name the training images that pull each prediction most.",
)
@click.option(
    "--labels",
    type=click.Path(),
    help="Labels file that the head was fitted to (fit-head --labels), for --because.",
)
@strict_option
@loading_options
@column_options
@cache_images_option
@shows_results
def command(
    terminal: Terminal,
    model: str,
    sources: tuple[str, ...],
    because: str | None,
    labels: str | None,
    **options: Any,
) -> None:
    """Show which places of the images of SOURCES speak for the class that MODEL predicts.

    MODEL is a head or a model file. SOURCES are images, folders, manifests, shards or URLs.
    """
    from bottleneck.report.explain import explain

    if labels is not None and because is None:
        raise click.UsageError("--labels goes with --because CACHE.")
    found: Because | None = None
    if because is not None:  # first: it checks the labels before any place is computed
        from bottleneck.data.config import ReadConfig
        from bottleneck.models.because import because as training_pulls

        found = training_pulls(
            model,
            *sources,
            cache=because,
            class_names=options["class_names"],
            labels=labels,
            reading=config_from(ReadConfig, options),
            options=config_from(LoadOptions, options),
            reporter=terminal,
        )
    result = explain(model, *sources, reporter=terminal, **options)
    values = result.to_json() if terminal.as_json else {"notes": result.notes}
    parts = _places(result)
    if found is not None:
        sheet = None
        if result.sheet:
            from bottleneck.report.because_sheet import because_sheet

            path = Path(result.sheet)
            sheet = str(because_sheet(found, path.with_stem(f"{path.stem}-because")))
        values |= {"because": found.to_json() | {"sheet": sheet}} if terminal.as_json else {}
        parts += [*_pulls(found), *([f"Sheet of them: {sheet}"] if sheet else [])]
    terminal.result(values, *parts)


def _places(result: Explanations) -> list[RenderableType]:
    """Return the table of logits and their terms, then lines on what it leaves out and on files."""
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
        folder = Path(result.paths[0][0]).parent
        parts.append(f"Sheet: {result.sheet}. Overlays at the images' own size: {folder}/")
    return parts


def _pulls(found: Because) -> list[RenderableType]:
    """Return a table for each prediction, the strongest training images first."""
    parts: list[RenderableType] = []
    for one in found.pulls[:ROWS_SHOWN]:
        over = "" if one["against"] is None else f" over {one['against']}"
        title = f"Because of: {one['image']}, {one['class']}{over} by {one['margin']:.3f}"
        rows = [(each["image"], each["given"], round(each["pull"], 4)) for each in one["training"]]
        parts.append(table(title, ("training image", "given", "pull"), rows))
    how = "exactly, at the same C and standardisation" if found.exact else "by one step of Newton's method"
    return [*parts, f"Without a training image the margin would be lower by its pull ({how})."]
