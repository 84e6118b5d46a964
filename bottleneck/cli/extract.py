"""`bottleneck extract`: run the backbone once over images and keep its features."""

from __future__ import annotations

from shlex import quote

import click

from bottleneck.cli.options import Crop, engine_options, reading_options
from bottleneck.cli.terminal import Terminal, shows_results, table


@click.command()
@click.argument("source")
@click.option(
    "-o", "--output", "cache", type=click.Path(), help="Cache to write. [default: cache/SOURCE--BACKBONE.h5]"
)
@click.option("--backbone", help="Name as `bottleneck backbones` lists it. [default: efficientnet_lite0]")
@click.option("--weights", help="Weights id, a .pth or .safetensors file, or none for random ones.")
@click.option(
    "--node", "nodes", multiple=True, help="NODE or NODE@POOL; may be repeated. [default: bottleneck]"
)
@click.option(
    "--pool", type=click.Choice(["avg", "avg2", "avg3", "max", "flatten", "none"]), help="Map → vector."
)
@click.option("--dtype", type=click.Choice(["float16", "float32"]), help="As stored. [default: float16]")
@click.option(
    "--views", type=click.IntRange(0), default=0, help="Augmented views per image beside the plain one."
)
@click.option("--image-size", type=click.IntRange(8, 4096), help="Side of the network's input in pixels.")
@click.option("--crop", type=Crop(), help="Share of the resized image that is kept, or squash for all of it.")
@click.option("--in-channels", type=click.IntRange(1, 4), help="1 reads images as grey.")
@click.option("--depth", type=click.IntRange(1, 6), help="Blocks of small_cnn.")
@click.option("--seed", type=int, help="Of random weights, of splits and of views. [default: 0]")
@click.option(
    "--on-error", type=click.Choice(["skip", "fail"]), default="skip", help="What a bad image does."
)
@click.option("--keep-parts", is_flag=True, help="Leave the cache as a folder of parts, not one file.")
@click.option("--trust-code", is_flag=True, help="Import a backbone given as package.module:function.")
@click.option("--dry-run", is_flag=True, help="Say what would be computed and what it would cost.")
@engine_options
@reading_options
@shows_results
def command(terminal: Terminal, source: str, cache: str | None, dry_run: bool, **options: object) -> None:
    """Run the frozen backbone once over the images of SOURCE and keep its features.

    SOURCE is a folder (class/x.jpg or split/class/x.jpg), a manifest (.csv, .jsonl, .parquet), tar shards or
    a URL of any of these. A second run computes only what is new.
    """
    from bottleneck.extraction.extract import extract
    from bottleneck.extraction.survey import survey

    if dry_run:
        plan = survey(source, cache, **options)
        terminal.result(plan.to_json(), table("Would extract", ("what", "value"), plan.to_json().items()))
        return
    result = extract(source, cache, reporter=terminal, **options)
    shown = {
        "cache": result.cache,
        "images": result.images,
        "computed": result.computed,
        "reused": result.reused,
        "failed": result.failed,
        "removed": result.removed,
        "images per second": result.images_per_second,
        "engine": result.engine or "not needed",
        **{f"node {name}": "×".join(map(str, shape)) for name, shape in result.nodes.items()},
    }
    parts = [table("Features", ("what", "value"), shown.items())]
    if result.failures:
        parts.append(table("Images without a row", ("image", "reason"), sorted(result.failures.items())))
    if result.computed:
        stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in result.spent.items())
        parts.append(
            f"{result.computed} images in {result.seconds:.1f} s ({result.images_per_second:.0f} a second), "
            f"after {result.startup_seconds:.1f} s of loading. Side by side: {stages}."
        )
    if result.images:
        parts.append(f"Next: bottleneck fit-head {quote(result.cache)}")
    terminal.result(result.to_json(), *parts)
    result.require_rows()
