"""`bottleneck transfer-study`: how transferable the features of each layer are, on the user's own images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bottleneck.cli.options import flags_of, reading_options, strict_option
from bottleneck.cli.terminal import Command, Terminal, shows_results, table
from bottleneck.errors import counted
from bottleneck.studies.study_config import ALEXNET, StudyConfig

if TYPE_CHECKING:
    from bottleneck.studies.transfer_study.study import TransferStudy

KINDS_SHOWN = ("base", "BnB", "BnB+", "AnB", "AnB+", "random")


class Names(click.ParamType):
    """A text file with one class name a line."""

    name = "file"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        if isinstance(value, list):
            return value
        try:
            lines = Path(str(value)).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            self.fail(f"{value} cannot be read as a text file: {error}.", param, ctx)
        return [line.strip() for line in lines if line.strip()]


flag = flags_of(StudyConfig)


@click.command(cls=Command)
@click.argument("source", type=click.Path())
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    show_default="studies/SOURCE",
    help="Folder for the runs, the figure and the tables of the study.",
)
@flag(
    "--seeds",
    type=click.IntRange(1, 100),
    help="Number of repetitions, each with other weights and halves of the classes.",
)
@click.option(
    "--half-a",
    type=Names(),
    show_default="drawn for each seed",
    help="Text file with the class names of half A, one a line.",
)
@click.option(
    "--half-b",
    type=Names(),
    show_default="drawn for each seed",
    help="Text file with the class names of half B, one a line.",
)
@flag("--network", help=f"Network to study: {ALEXNET}, or a backbone, which is cut between its blocks.")
@flag("--width", type=click.IntRange(1, 512), help=f"Channels of the first layer of {ALEXNET}.")
@flag("--image-size", type=click.IntRange(16, 1024), help="Side of the network's input in pixels.")
@flag(
    "--in-channels",
    type=click.IntRange(1, 4),
    help="Colour channels of the network's input; 1 reads images as grey.",
)
@flag("--epochs", type=click.IntRange(1), help="Epochs of every training.")
@flag("--batch-size", type=click.IntRange(2, 4096), help="Images of one training step.")
@flag("--lr", type=click.FloatRange(0, min_open=True), help="Largest learning rate.")
@flag("--weight-decay", type=click.FloatRange(0), help="Weight decay of every training.")
@flag(
    "--share",
    "shares",
    type=float,
    multiple=True,
    help="Share of the images of A for runs that show the effect of its size; may be repeated.",
)
@reading_options
@strict_option
@shows_results
def command(
    terminal: Terminal, source: str, half_a: list[str] | None, half_b: list[str] | None, **options: Any
) -> None:
    """Measure how transferable each layer is, on the images of SOURCE (after Yosinski et al. 2014).

    The classes are split into halves A and B. Networks trained on A and on B give their first n layers,
    frozen or fine-tuned, to networks for B. Every run is saved: a study that was stopped continues where it
    was, and more --seeds add to it.
    """
    from bottleneck.report.studies import transfer_figure
    from bottleneck.studies.transfer_study.protocol import LEGEND
    from bottleneck.studies.transfer_study.study import transfer_study

    if (half_a is None) != (half_b is None):
        raise click.UsageError("Give both --half-a and --half-b, or neither.")
    halves = (half_a, half_b) if half_a is not None and half_b is not None else None
    study = transfer_study(source, halves=halves, reporter=terminal, **options)
    figure = transfer_figure(study, study.folder / "figure.png")
    values = study.to_json() | {"figure": str(figure)}
    terminal.result(
        values,
        table("Val accuracy of B, mean over seeds", ("n", *KINDS_SHOWN), _accuracies(values)),
        table(
            "Paired differences in points ± 95 % interval", ("n", *values["differences"]), _differences(study)
        ),
        LEGEND,
        *(f"• {sentence}" for sentence in study.text),
        f"{counted(study.trained, 'run')} trained in {study.seconds:.0f} s. Figure: {figure}  Runs: "
        f"{values['csv']}",
    )


def _accuracies(values: dict[str, Any]) -> list[list[object]]:
    """Return one row per number of layers n; n = 0 is the base network."""
    by_kind = {
        kind: {point["n"]: point["mean"] for point in curve} for kind, curve in values["curves"].items()
    }
    by_kind["base"] = by_kind["baseB"]
    depths = sorted({n for curve in by_kind.values() for n in curve})
    return [[n, *(by_kind[kind].get(n) for kind in KINDS_SHOWN)] for n in depths]


def _differences(study: TransferStudy) -> list[list[object]]:
    """Return one row per number of layers n, with each difference and its interval."""
    from bottleneck.studies.transfer_study.effects import DIFFERENCES

    curves = study.curves
    return [[n, *(str(curves.estimate(name, n) or "–") for name in DIFFERENCES)] for n in curves.depths]
