"""`bottleneck export`: a head or model as ONNX or as a torch.export program; a cache as a map for viewers."""

from __future__ import annotations

from shlex import quote

import click

from bottleneck.cli.options import trust_code_option
from bottleneck.cli.terminal import Command, Terminal, shows_results, table
from bottleneck.errors import counted
from bottleneck.names import EXPORT_FORMATS, MAP_FORMAT


@click.command(cls=Command)
@click.argument("model", type=click.Path())
@click.option(
    "--format",
    type=click.Choice((*EXPORT_FORMATS, MAP_FORMAT)),
    required=True,
    help="Form of the file: onnx for ONNX runtimes, torch for torch.export.load, map of a cache for viewers "
    "of embeddings.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    show_default="MODEL with the suffix .onnx, .pt2 or .map.parquet",
    help="File to write.",
)
@click.option("--head", type=click.Path(), help="With --format map: head whose predictions are added.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="With --format map: seed of the positions."
)
@trust_code_option
@shows_results
def command(
    terminal: Terminal,
    model: str,
    format: str,
    head: str | None,
    seed: int,
    trust_code: bool,
    output: str | None,
) -> None:
    """Write MODEL, a head or a model file, for other runtimes: uint8 images in, probabilities out.

    Resize and crop images beforehand as the file's metadata describe; normalisation is inside. The file is
    compared with the model before it is written.

    With --format map, MODEL is a cache (.h5): a Parquet table with a position, the neighbours, the labels and
    the image of each sample is written, which viewers such as embedding-atlas open.
    """
    if format == MAP_FORMAT:
        from bottleneck.studies.embedding.map_file import export_map

        written = export_map(model, output=output, head=head, seed=seed, reporter=terminal)
        shown = f"--x x --y y --neighbors neighbors {quote(written.path)}"
        lines = f"Written to {written.path}: {counted(written.samples, 'sample')} by {written.node}."
        terminal.result(written.to_json(), lines, f"Open it: embedding-atlas {shown}")
        return
    if head is not None:
        raise click.UsageError("--head belongs to --format map.")
    from bottleneck.models.export import export

    result = export(model, format=format, output=output, trust_code=trust_code)
    rows = [(name, " × ".join(map(str, shape))) for name, shape in result.inputs.items()]
    terminal.result(
        result.to_json(),
        table("Inputs", ("name", "shape"), rows),
        f"Written to {result.path}; it differs from the model by at most {result.max_difference:.1e}.",
    )
