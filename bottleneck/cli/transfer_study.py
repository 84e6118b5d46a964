"""`bottleneck transfer-study`: how transferable the features of each layer are, on the user's own images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bottleneck.cli.options import reading_options
from bottleneck.cli.terminal import Terminal, shows_results, table

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


@click.command()
@click.argument("source")
@click.option("-o", "--output", type=click.Path(), help="Folder of the study. [default: studies/SOURCE]")
@click.option("--seeds", type=click.IntRange(1, 100), default=3, show_default=True, help="Repetitions.")
@click.option("--half-a", type=Names(), help="File with A's classes, one a line. [default: drawn per seed]")
@click.option("--half-b", type=Names(), help="File with B's classes.")
@click.option(
    "--network", default="alexnet8", show_default=True, help="alexnet8, or a backbone by its blocks."
)
@click.option("--width", type=click.IntRange(1, 512), default=8, show_default=True, help="Channels of conv1.")
@click.option("--image-size", type=click.IntRange(16, 1024), default=32, show_default=True)
@click.option("--in-channels", type=click.IntRange(1, 4), default=3, show_default=True, help="1 reads grey.")
@click.option("--epochs", type=click.IntRange(1), default=12, show_default=True, help="Of every training.")
@click.option("--batch-size", type=click.IntRange(2, 4096), default=64, show_default=True)
@click.option("--lr", type=click.FloatRange(0, min_open=True), default=0.05, show_default=True)
@click.option("--weight-decay", type=click.FloatRange(0), default=5e-4, show_default=True)
@click.option(
    "--share", "shares", type=float, multiple=True, default=(0.25, 0.5), help="Of A's images; repeatable."
)
@reading_options
@shows_results
def command(
    terminal: Terminal, source: str, half_a: list[str] | None, half_b: list[str] | None, **options: object
) -> None:
    """Ask how transferable the features of each layer are, on the images of SOURCE (Yosinski et al. 2014).

    The classes are split into halves A and B. Networks trained on A and on B hand their first n layers over,
    frozen or fine-tuned, to networks for B. Every run is kept: a study that was stopped goes on where it was,
    and more --seeds add to it.
    """
    from bottleneck.report.transfer_figure import transfer_figure
    from bottleneck.studies.transfer_study.study import transfer_study

    if (half_a is None) != (half_b is None):
        raise click.UsageError("Give both --half-a and --half-b, or neither.")
    halves = (half_a, half_b) if half_a is not None else None
    study = transfer_study(source, halves=halves, reporter=terminal, **options)
    figure = transfer_figure(study, study.folder / "figure.png")
    values = study.to_json() | {"figure": str(figure)}
    terminal.result(
        values,
        table("Val accuracy of B, mean over seeds", ("n", *KINDS_SHOWN), _accuracies(values)),
        table(
            "Paired differences in points ± 95 % interval", ("n", *values["differences"]), _differences(study)
        ),
        *(f"• {sentence}" for sentence in study.text),
        f"{study.trained} runs trained in {study.seconds:.0f} s. Figure: {figure}  Runs: {values['csv']}",
    )


def _accuracies(values: dict) -> list[list[object]]:
    """One row per n; n = 0 is the base network."""
    by_kind = {
        kind: {point["n"]: point["mean"] for point in curve} for kind, curve in values["curves"].items()
    }
    by_kind["base"] = by_kind["baseB"]
    depths = sorted({n for curve in by_kind.values() for n in curve})
    return [[n, *(by_kind[kind].get(n) for kind in KINDS_SHOWN)] for n in depths]


def _differences(study: TransferStudy) -> list[list[object]]:
    """One row per n, each difference with its interval."""
    from bottleneck.studies.transfer_study.effects import DIFFERENCES

    curves = study.curves
    return [[n, *(str(curves.estimate(name, n) or "–") for name in DIFFERENCES)] for n in curves.depths]
