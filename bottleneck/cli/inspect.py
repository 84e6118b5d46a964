"""`bottleneck inspect`: open a backbone up."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from bottleneck.cli.options import input_options, trust_code_option
from bottleneck.cli.terminal import Command, Terminal, shows_results, table
from bottleneck.errors import BackboneError, counted
from bottleneck.names import DEFAULT_CHANNELS, PATCH_IMAGES

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bottleneck.backbones.inspect import Inspection


class References(click.ParamType):
    """Modules and blocks, separated by commas."""

    name = "a,b,…"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        return value if isinstance(value, tuple) else tuple(str(value).split(","))


@click.command(cls=Command)
@click.argument("backbone")
@click.option(
    "--weights",
    show_default="none are loaded",
    help="Weights of the network: an id, a .pth or .safetensors file, or none for random ones.",
)
@input_options(DEFAULT_CHANNELS)
@click.option("--freeze-to", help="Count as trainable only what lies above this node or block.")
@click.option(
    "--free",
    type=References(),
    default=(),
    help="Count as trainable only these modules or blocks, such as features.9 or 3-4, separated by commas.",
)
@click.option(
    "--images", type=click.IntRange(1), help="Images per sample of a new classifier, as scratch trains it."
)
@click.option("--covariates", type=click.IntRange(0), help="Numbers per sample of a new classifier.")
@click.option("--classes", type=click.IntRange(2), help="Classes of a new classifier; two share one output.")
@click.option("--modules", is_flag=True, help="List every module with its index in its parent.")
@click.option("--parameters", "state", is_flag=True, help="List every parameter and buffer.")
@click.option("--filters", type=click.Path(), help="Draw the kernels of the first layer to this PNG file.")
@click.option(
    "--patches", type=click.Path(), help="Draw the strongest image patches of --source to this PNG file."
)
@click.option("--source", help="Folder, manifest or URL of the images for --patches.")
@click.option(
    "--node",
    "nodes",
    multiple=True,
    show_default="all blocks",
    help="Node whose channels --patches shows; may be repeated.",
)
@click.option(
    "--limit",
    type=click.IntRange(9),
    default=PATCH_IMAGES,
    show_default=True,
    help="Number of images that are searched for --patches.",
)
@trust_code_option
@shows_results
def command(
    terminal: Terminal,
    backbone: str,
    weights: str | None,
    image_size: int | None,
    crop: float | str | None,
    filters: str | None,
    patches: str | None,
    source: str | None,
    **options: Any,
) -> None:
    """Show the blocks of BACKBONE from stem to classifier: parameters, shapes, costs, what would train.

    Node names are what `extract --node` takes.
    """
    from bottleneck.backbones.inspect import inspect_backbone
    from bottleneck.backbones.registry import load_backbone, outline

    if (patches is None) != (source is None):
        raise BackboneError("--patches F.png and --source IMAGES belong together.")
    kind = {name: options.pop(name) for name in ("in_channels", "depth", "trust_code")}
    kind["image_size"] = image_size
    search = {name: options.pop(name) for name in ("nodes", "limit")}
    if weights or filters or patches:
        network = load_backbone(backbone, weights=weights, **kind)
    else:
        network = outline(backbone, **kind)
    preprocess = network.preprocess.override(image_size, crop)
    drawn = {}
    if filters:
        from bottleneck.backbones.patches import first_kernels
        from bottleneck.report.image_sheets import draw_filters

        drawn["filters"] = str(draw_filters(first_kernels(network), filters))
    if patches and source:
        from bottleneck.backbones.patches import patches_of_source
        from bottleneck.report.image_sheets import draw_patches

        strongest = patches_of_source(network, source, preprocess=preprocess, reporter=terminal, **search)
        drawn["patches"] = str(draw_patches(strongest, patches))
    result = inspect_backbone(network, preprocess=preprocess, **options)
    terminal.result(
        {**result.to_json(), **drawn},
        *_tables(result),
        *(f"Written to {path}" for path in drawn.values()),
    )


def _tables(result: Inspection) -> list[RenderableType]:
    """Return the table of blocks, and those of modules and state if they were requested."""
    columns = ["", "block", "--node", "parameters", "shape", "MACs", "in cache"]
    rows: list[list[object]] = [
        [b.index, b.name, b.node, b.parameters, _shape(b.shape), _mega(b.macs), _kilo(b.cached_bytes)]
        for b in result.blocks
    ]
    if result.trainable != result.parameters:
        columns.append("trainable")
        rows = [[*row, b.trainable] for row, b in zip(rows, result.blocks, strict=True)]
    unit = "an image" if result.images == 1 else f"a sample of {result.images} images"
    size = f"{result.image_size} × {result.image_size} × {result.in_channels}"
    shown: list[RenderableType] = [
        table(f"{result.name}, weights {result.weights}, images {size}", columns, rows),
        f"{result.parameters:,} parameters, {result.trainable:,} trainable, {result.macs:,} MACs {unit}.",
        f"bottleneck: {counted(result.features, 'feature')}, {result.bottleneck_rule}; map "
        f"{result.bottleneck_node}"
        f"{_tokens(result)}.",
    ]
    if result.classifier:
        shown.append(f"classifier: {' → '.join(result.classifier)}.")
    if result.modules is not None:
        modules = [(m.path, m.index, m.type, m.parameters) for m in result.modules]
        shown.append(table("Modules", ("module", "index", "type", "parameters"), modules))
    if result.state is not None:
        state = [(s.name, s.kind, _shape(s.shape), s.dtype, s.requires_grad) for s in result.state]
        shown.append(table("State", ("name", "kind", "shape", "dtype", "requires grad"), state))
    return shown


def _mega(macs: int) -> str:
    return f"{macs / 1e6:,.1f} M"


def _kilo(count: int) -> str:
    return f"{count / 1e3:,.0f} kB"


def _tokens(result: Inspection) -> str:
    """Return what the tokens of the bottleneck's map are, for a vision transformer."""
    shape = next((block.shape for block in result.blocks if block.node == result.bottleneck_node), ())
    if len(shape) != 2:
        return ""
    side = math.isqrt(shape[0])
    before = shape[0] - side * side
    first = f", after {before} of class or registers (the first is @token)" if before else ""
    return f", {side} × {side} tokens of patches (their mean is @avg){first}"


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
