"""`bottleneck similar`: the images nearest to an image by cached features."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import click
from rich.console import RenderableType

from bottleneck.cli.completion import complete_node
from bottleneck.cli.options import engine_options, flags_of, loading_options
from bottleneck.cli.terminal import Command, Terminal, shows_results, table
from bottleneck.errors import counted
from bottleneck.studies.study_config import SimilarConfig

if TYPE_CHECKING:
    from bottleneck.studies.similar.similar import Similar

IMAGES_SHOWN = 20


flag = flags_of(SimilarConfig)


@click.command(cls=Command)
@click.argument("cache", type=click.Path())
@click.argument("images", type=click.Path(), nargs=-1, metavar="[IMAGE]...")
@flag("--all", "all_images", is_flag=True, help="Find the neighbours of every image of the cache.")
@flag(
    "--node",
    shell_complete=complete_node,
    show_default="bottleneck, else the first vector node",
    help="Node whose cached vectors are compared.",
)
@flag("--count", type=click.IntRange(1), help="Number of neighbours of each image.")
@flag(
    "--threshold",
    type=click.FloatRange(-1, 1),
    help="Also group look-alikes: images linked by cosines of this or more.",
)
@flag("-o", "--output", type=click.Path(), help="Write the neighbours to this .csv or .jsonl file.")
@flag(
    "--raw",
    is_flag=True,
    help="Write texts to CSV as they are, also those that a spreadsheet would execute.",
)
@click.option("--sheet", type=click.Path(), help="Draw the images with names and cosines to this PNG file.")
@loading_options
@engine_options
@shows_results
def command(
    terminal: Terminal,
    cache: str,
    images: tuple[str, ...],
    all_images: bool,
    threshold: float | None,
    output: str | None,
    sheet: str | None,
    **options: Any,
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

    result = similar(
        cache,
        images,
        all_images=all_images,
        threshold=threshold,
        output=output,
        reporter=terminal,
        **options,
    )
    unreadable: dict[str, str] = {}
    if sheet:
        from bottleneck.report.image_sheets import similar_sheet

        unreadable = similar_sheet(result, sheet)
    written = {"output": output, "sheet": sheet}
    values: dict[str, Any] = {}
    if terminal.as_json:  # made only if it is printed: for a large cache it is large
        missing = [{"image": image, "error": reason} for image, reason in unreadable.items()]
        values = result.to_json() | written | {"unreadable": missing}
    terminal.result(
        values,
        *_shown(result, threshold, unreadable),
        *(f"Written to {path}" for path in written.values() if path),
    )


def _shown(result: Similar, threshold: float | None, unreadable: dict[str, str]) -> list[RenderableType]:
    """Return tables for people: each image's neighbours, or only the nearest one if there are many images."""
    many = len(result.images) > IMAGES_SHOWN
    rows = []
    for image, neighbours in islice(result.neighbours(), IMAGES_SHOWN):
        rows += [(image, key, f"{cosine:.4f}") for key, cosine in neighbours[: 1 if many else None]]
    parts: list[RenderableType] = []
    if len(result.images):
        parts.append(table(f"Nearest by {result.node}", ("image", "neighbour", "cosine"), rows))
    if many:
        parts.append(f"… and {counted(len(result.images) - IMAGES_SHOWN, 'more image')}; -o writes them all.")
    if threshold is not None:
        groups = result.groups()
        shown = [
            (len(group), ", ".join(group[:4]) + " …" * (len(group) > 4)) for group in groups[:IMAGES_SHOWN]
        ]
        pairs = f"({counted(result.pairs, 'pair')} with cosine ≥ {threshold:g})"
        title = f"{counted(len(groups), 'group')} of look-alikes {pairs}"
        parts.append(table(title, ("images", "which"), shown))
    if result.failed:
        parts.append(table("Images that cannot be compared", ("image", "reason"), result.failed.items()))
    if unreadable:
        image, reason = next(iter(unreadable.items()))
        parts.append(
            f"Note: {counted(len(unreadable), 'image')} of the sheet cannot be read; {image}: {reason}."
        )
    return parts
