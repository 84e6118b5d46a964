"""`bottleneck extract`: run the backbone once over images and keep its features."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING, Any

import click
from rich.console import RenderableType

from bottleneck.cli.options import (
    ClusterAddress,
    decoding_option,
    engine_options,
    flags_of,
    input_options,
    reading_options,
    shard_option,
    strict_option,
    trust_code_option,
)
from bottleneck.cli.terminal import Command, Terminal, data_sheet_lines, shows_results, table, views_text
from bottleneck.data.config import ReadConfig
from bottleneck.errors import counted
from bottleneck.extraction.config import ON_ERROR, ExtractConfig
from bottleneck.names import BOTTLENECK, DEFAULT_BACKBONE, DEFAULT_POOL, DTYPES, POOLS
from bottleneck.records import config_from

if TYPE_CHECKING:
    from bottleneck.extraction.extract import ExtractResult

flag = flags_of(ExtractConfig)


@click.command(cls=Command)
@click.argument("source", type=click.Path())
@click.option(
    "-o",
    "--output",
    "cache",
    type=click.Path(),
    show_default="cache/SOURCE--BACKBONE.h5",
    help="Cache to write.",
)
@flag(
    "--backbone",
    show_default=DEFAULT_BACKBONE,
    help="Network: a name that `bottleneck backbones` lists, a model file or package.module:function.",
)
@flag(
    "--weights",
    show_default="the published ones",
    help="Weights of the network: an id, a .pth or .safetensors file, or none for random ones.",
)
@flag(
    "--node",
    "nodes",
    multiple=True,
    show_default=BOTTLENECK,
    help="Layer whose output is stored, as NODE or NODE@POOL; may be repeated.",
)
@flag(
    "--pool",
    type=click.Choice(POOLS),
    show_default=DEFAULT_POOL,
    help="How feature maps become vectors, for nodes that are given without @POOL.",
)
@flag("--dtype", type=click.Choice(DTYPES), show_default=DTYPES[0], help="Type in which features are stored.")
@flag("--views", type=click.IntRange(0), help="Augmented views per image to store beside the plain features.")
@flag(
    "--flip", is_flag=True, help="Also store the features of each image's mirror image, for evaluate --flip."
)
@input_options(ExtractConfig.in_channels)
@decoding_option
@flag(
    "--seed",
    type=int,
    show_default=str(ReadConfig.seed),
    help="Seed of random weights, of splits and of views.",
)
@flag(
    "--on-error",
    type=click.Choice(ON_ERROR),
    help="What to do with an unreadable image: list it as a failure, or stop.",
)
@flag(
    "--measure",
    is_flag=True,
    help="Also measure images (dark, blurred …) that a cache holds unmeasured: decoded again, not computed.",
)
@flag(
    "--reread",
    is_flag=True,
    help="Read every image, also where its size, times and inode say that it has not changed.",
)
@flag(
    "--source-moved",
    is_flag=True,
    help="The images of the cache are now in SOURCE; keep their features, and the cache's file.",
)
@flag("--keep-parts", is_flag=True, help="Leave the cache as a folder of parts, not as one file.")
@flag(
    "--plan-file",
    type=click.Path(),
    help="Plan of all shards (network, precision, images, labels): made if it does not exist, else kept to.",
)
@flag(
    "--ray",
    type=ClusterAddress(),
    is_flag=False,
    flag_value="auto",
    show_default="not used",
    help="Compute on the Ray cluster at HOST:PORT, or on that of this machine.",
)
@flag(
    "--ray-workers",
    type=click.IntRange(1, 100_000),
    show_default="one per node",
    help="Workers of the Ray cluster, of equal size.",
)
@flag(
    "--gpus-per-worker",
    type=click.FloatRange(0, 64),
    help="GPUs of each worker of the Ray cluster, or the part of one, such as 0.5.",
)
@trust_code_option
@strict_option
@click.option("--dry-run", is_flag=True, help="Show what would be computed, and write no cache.")
@engine_options
@reading_options
@shard_option
@shows_results
def command(terminal: Terminal, source: str, cache: str | None, dry_run: bool, **options: Any) -> None:
    """Run the frozen backbone once over the images of SOURCE and keep its features.

    SOURCE is a folder (class/x.jpg, split/class/x.jpg or class/split/x.jpg), a manifest (.csv, .jsonl,
    .parquet), tar shards or a URL of any of these. A second run computes only what is new.
    """
    from bottleneck.extraction.extract import extract
    from bottleneck.extraction.survey import survey

    if dry_run:
        reading = config_from(ReadConfig, options, seed=options["seed"] or 0)
        plan = survey(source, cache, config_from(ExtractConfig, options), reading, options["strict"])
        planned = [(name, value) for name, value in plan.to_json().items() if name not in ("notes", "data")]
        would = table("Would extract", ("what", "value"), planned)
        terminal.result(plan.to_json(), *data_sheet_lines(plan.data), would)
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
        "engine": _engines(result),
        **{f"node {name}": _row(result, name) for name in result.nodes},
    }
    parts: list[RenderableType] = [*data_sheet_lines(result.data)]
    parts.append(table("Features", ("what", "value"), shown.items()))
    if result.failures:
        parts.append(table("Images without a row", ("image", "reason"), sorted(result.failures.items())))
    if result.computed:
        stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in result.spent.items())
        parts.append(
            f"{counted(result.computed, 'image')} in {result.seconds:.1f} s "
            f"({result.images_per_second:.0f} a second), after {result.startup_seconds:.1f} s of loading. "
            f"Side by side: {stages}."
        )
    if result.images:
        parts.append(_next_step(result))
    terminal.result(result.to_json(), *parts)
    result.require_rows()


def _engines(result: ExtractResult) -> str:
    """Return the engines that ran, each with its precision."""
    used = [f"{one['engine']} in {one['precision']}" for one in result.engines]
    return ", ".join(dict.fromkeys(used)) or "not needed"


def _row(result: ExtractResult, node: str) -> str:
    """Return the shape of an image's row and its precision, and its views if it has any."""
    text, views = "×".join(map(str, result.nodes[node])), result.views[node]
    text = f"{text} in {result.precisions[node]}"
    return text if views is None else f"{text}, views: {views_text(views)}"


def _next_step(result: ExtractResult) -> str:
    """Return a line with the command that follows: shards are merged, and a head needs labels."""
    taken = next((note.details for note in result.notes if note.code == "shard-taken"), None)
    if taken is not None:
        first, last = result.cache.rsplit(f"--shard-{taken['shard']}-of-", 1)
        whole = quote(first + last.removeprefix(str(taken["of"])))
        of = f"{quote(first)}--shard-*-of-{quote(last)}"
        return f"Next, with all {taken['of']} shards: bottleneck cache merge {of} -o {whole}"
    cache = quote(result.cache)
    if any(target["labelled"] for target in result.data["targets"].values()):
        return f"Next: bottleneck fit-head {cache}"
    with_labels = f"fit-head {cache} --labels FILE"
    return f"Next: bottleneck similar {cache} IMAGE, or with a table of labels: {with_labels}"
