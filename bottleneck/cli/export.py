"""`bottleneck export`: a head or model as ONNX or as a torch.export program."""

from __future__ import annotations

import click

from bottleneck.cli.terminal import Terminal, shows_results, table


@click.command()
@click.argument("model", type=click.Path())
@click.option("--format", type=click.Choice(["onnx", "torch"]), required=True)
@click.option("-o", "--output", type=click.Path(), help="[default: MODEL with .onnx or .pt2]")
@click.option(
    "--trust-code", is_flag=True, help="Import a backbone that MODEL names as package.module:function."
)
@shows_results
def command(terminal: Terminal, model: str, format: str, output: str | None, trust_code: bool) -> None:
    """Write MODEL, a head or a model file, for other runtimes: uint8 images in, probabilities out.

    Images are to be resized and cropped beforehand, as the metadata say; normalisation is inside. The file is
    compared with the model before it is written.
    """
    from bottleneck.models.export import export

    result = export(model, format=format, output=output, trust_code=trust_code)
    rows = [(name, " × ".join(map(str, shape))) for name, shape in result.inputs.items()]
    terminal.result(
        result.to_json(),
        table("Inputs", ("name", "shape"), rows),
        f"Written to {result.path}; it differs from the model by at most {result.max_difference:.1e}.",
    )
