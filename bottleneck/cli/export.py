"""`bottleneck export`: a head or model as ONNX or as a torch.export program."""

from __future__ import annotations

from typing import Any

import click

from bottleneck.cli.options import trust_code_option
from bottleneck.cli.terminal import Command, Terminal, shows_results, table
from bottleneck.names import EXPORT_FORMATS


@click.command(cls=Command)
@click.argument("model", type=click.Path())
@click.option(
    "--format",
    type=click.Choice(EXPORT_FORMATS),
    required=True,
    help="Form of the file: onnx for ONNX runtimes, torch for torch.export.load.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    show_default="MODEL with the suffix .onnx or .pt2",
    help="File to write.",
)
@trust_code_option
@shows_results
def command(terminal: Terminal, model: str, **options: Any) -> None:
    """Write MODEL, a head or a model file, for other runtimes: uint8 images in, probabilities out.

    Resize and crop images beforehand as the file's metadata describe; normalisation is inside. The file is
    compared with the model before it is written.
    """
    from bottleneck.models.export import export

    result = export(model, **options)
    rows = [(name, " × ".join(map(str, shape))) for name, shape in result.inputs.items()]
    terminal.result(
        result.to_json(),
        table("Inputs", ("name", "shape"), rows),
        f"Written to {result.path}; it differs from the model by at most {result.max_difference:.1e}.",
    )
