"""`bottleneck inspect`: open a backbone up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bottleneck.cli.options import Crop
from bottleneck.cli.terminal import Terminal, shows_results, table
from bottleneck.errors import BackboneError

if TYPE_CHECKING:
    from bottleneck.backbones.inspect import Inspection


@click.command()
@click.argument("backbone")
@click.option("--weights", help="Weights id or file, or none; without it the architecture alone is shown.")
@click.option("--in-channels", type=click.IntRange(1, 4), default=3, help="1 for grey images.")
@click.option("--depth", type=click.IntRange(1), help="Blocks of small_cnn.")
@click.option("--image-size", type=click.IntRange(8, 4096), help="Side of the network's input in pixels.")
@click.option("--crop", type=Crop(), help="As in extract.")
@click.option("--freeze-to", help="Count as trainable what lies above this node or block.")
@click.option("--free", help="Count as trainable these alone: modules, features.9, blocks 3-4; with commas.")
@click.option("--modules", is_flag=True, help="List every module with its index in its parent.")
@click.option("--parameters", "state", is_flag=True, help="List every parameter and buffer.")
@click.option("--filters", type=click.Path(), help="PNG to draw the first layer's kernels into.")
@click.option("--patches", type=click.Path(), help="PNG to draw the strongest patches of --source into.")
@click.option("--source", help="Images for --patches.")
@click.option(
    "--node", "nodes", multiple=True, help="Node for --patches; may be repeated. [default: all blocks]"
)
@click.option("--limit", type=click.IntRange(9), default=300, help="Images to look for patches in.")
@click.option("--trust-code", is_flag=True, help="Import a backbone given as package.module:function.")
@shows_results
def command(
    terminal: Terminal,
    backbone: str,
    weights: str | None,
    in_channels: int,
    depth: int | None,
    image_size: int | None,
    crop: float | str | None,
    filters: str | None,
    patches: str | None,
    source: str | None,
    nodes: tuple[str, ...],
    limit: int,
    trust_code: bool,
    free: str | None,
    **options: object,
) -> None:
    """Show the blocks of BACKBONE from stem to classifier: parameters, shapes, costs, what would train.

    Node names are what `extract --node` takes.
    """
    from bottleneck.backbones.inspect import inspect_backbone
    from bottleneck.backbones.registry import load_backbone, outline

    if (patches is None) != (source is None):
        raise BackboneError("--patches F.png and --source IMAGES belong together.")
    kind = {"in_channels": in_channels, "depth": depth, "trust_code": trust_code}
    if weights or filters or patches:
        network = load_backbone(backbone, weights=weights, **kind)
    else:
        network = outline(backbone, **kind)
    preprocess = network.preprocess.override(image_size, crop)
    drawn = {}
    if filters:
        from bottleneck.backbones.patches import first_kernels
        from bottleneck.report.filters import draw_filters

        drawn["filters"] = str(draw_filters(first_kernels(network), filters))
    if patches:
        from bottleneck.backbones.patches import patches_of_source
        from bottleneck.report.filters import draw_patches

        found = patches_of_source(
            network, source, nodes, preprocess=preprocess, limit=limit, reporter=terminal
        )
        drawn["patches"] = str(draw_patches(found, patches))
    references = free.split(",") if free else ()
    result = inspect_backbone(network, preprocess=preprocess, free=references, **options)
    terminal.result(
        {**result.to_json(), **drawn}, *_tables(result), *(f"Written to {path}" for path in drawn.values())
    )


def _tables(result: Inspection) -> list:
    """The block table and what else was asked for."""
    columns = ["", "block", "--node", "parameters", "shape", "MACs", "in cache"]
    rows = [
        [b.index, b.name, b.node, b.parameters, _shape(b.shape), _mega(b.macs), _kilo(b.cached_bytes)]
        for b in result.blocks
    ]
    if result.trainable != result.parameters:
        columns.append("trainable")
        rows = [[*row, b.trainable] for row, b in zip(rows, result.blocks, strict=True)]
    size = f"{result.image_size} × {result.image_size} × {result.in_channels}"
    shown = [
        table(f"{result.name}, weights {result.weights}, images {size}", columns, rows),
        f"{result.parameters:,} parameters, {result.trainable:,} trainable, {result.macs:,} MACs an image.",
        f"bottleneck: {result.features:,} features, {result.bottleneck_rule}; map {result.bottleneck_node}.",
    ]
    if result.modules is not None:
        rows = [(m.path, m.index, m.type, m.parameters) for m in result.modules]
        shown.append(table("Modules", ("module", "index", "type", "parameters"), rows))
    if result.state is not None:
        rows = [(s.name, s.kind, _shape(s.shape), s.dtype, s.requires_grad) for s in result.state]
        shown.append(table("State", ("name", "kind", "shape", "dtype", "requires grad"), rows))
    return shown


def _mega(macs: int) -> str:
    return f"{macs / 1e6:,.1f} M"


def _kilo(count: int) -> str:
    return f"{count / 1e3:,.0f} kB"


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
