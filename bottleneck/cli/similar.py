"""`bottleneck similar`: the images nearest to an image by cached features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.console import RenderableType

from bottleneck.cli.options import engine_options
from bottleneck.cli.terminal import Terminal, shows_results, table

if TYPE_CHECKING:
    from bottleneck.studies.similar.similar import Similar

IMAGES_SHOWN = 20


@click.command()
@click.argument("cache", type=click.Path())
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@click.option("--all", "all_images", is_flag=True, help="The neighbours of every image of the cache.")
@click.option("--node", help="A vector node of the cache. [default: bottleneck, else its first]")
@click.option("--count", type=click.IntRange(1), default=10, show_default=True, help="Neighbours of each.")
@click.option(
    "--threshold",
    type=click.FloatRange(-1, 1),
    help="Also group look-alikes: images linked by cosines of this or more.",
)
@click.option("-o", "--output", type=click.Path(), help="Write what is found to this .csv or .jsonl file.")
@click.option("--sheet", type=click.Path(), help="Draw the images with names and cosines to this PNG file.")
@click.option("--weights", type=click.Path(), help="The weights file of the backbone, if it came from one.")
@click.option(
    "--trust-code", is_flag=True, help="Import a backbone that the cache names as package.module:function."
)
@engine_options
@shows_results
def command(
    terminal: Terminal,
    cache: str,
    images: tuple[str, ...],
    all_images: bool,
    threshold: float | None,
    sheet: str | None,
    **options: object,
) -> None:
    """Find the images of CACHE that are nearest to each IMAGE by the cosine of their features.

    IMAGE is a key of the cache, such as ants/001.jpg, or the path of any image, whose features are then
    computed as those of the cache were.
    """
    if all_images and images:
        raise click.UsageError("Name images or use --all, not both.")
    if not (all_images or images or threshold is not None):
        raise click.UsageError("Name an IMAGE, or use --all, or --threshold for groups of look-alikes.")
    from bottleneck.studies.similar.similar import similar

    asked = {"all_images": all_images, "threshold": threshold}
    result = similar(cache, images, reporter=terminal, **asked, **options)
    unreadable: dict[str, str] = {}
    if sheet:
        from bottleneck.report.contact_sheet import similar_sheet

        unreadable = similar_sheet(result, sheet)
    written = {"output": options["output"], "sheet": sheet}
    values = {}
    if terminal.as_json:  # of a large cache it is large
        missing = [{"image": image, "error": reason} for image, reason in unreadable.items()]
        values = result.to_json() | written | {"unreadable": missing}
    terminal.result(values, *_shown(result, threshold, unreadable), *_places(written))


def _shown(result: Similar, threshold: float | None, unreadable: dict[str, str]) -> list[RenderableType]:
    """Tables for people: each image's neighbours, of many images the nearest one alone."""
    many = len(result.images) > IMAGES_SHOWN
    rows = []
    for (image, found), _ in zip(result.neighbours(), range(IMAGES_SHOWN), strict=False):
        rows += [(image, key, f"{cosine:.4f}") for key, cosine in (found[:1] if many else found)]
    parts: list[RenderableType] = []
    if len(result.images):
        parts.append(table(f"Nearest by {result.node}", ("image", "neighbour", "cosine"), rows))
    if many:
        parts.append(f"… and {len(result.images) - IMAGES_SHOWN:,} more images; -o writes them all.")
    if threshold is not None:
        groups = result.groups()
        rows = [(len(group), ", ".join(group[:4]) + " …" * (len(group) > 4)) for group in groups]
        title = f"{len(groups):,} groups of look-alikes ({result.pairs:,} pairs with cosine ≥ {threshold:g})"
        parts.append(table(title, ("images", "which"), rows[:IMAGES_SHOWN]))
    if result.failed:
        parts.append(table("Images that cannot be looked for", ("image", "reason"), result.failed.items()))
    if unreadable:
        image, reason = next(iter(unreadable.items()))
        parts.append(f"Note: {len(unreadable)} images of the sheet cannot be read; {image}: {reason}.")
    return parts


def _places(written: dict[str, str | None]) -> list[str]:
    return [f"Written to {path}" for path in written.values() if path]
