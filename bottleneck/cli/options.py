"""Flags that several commands share, so that one word means one thing everywhere."""

from __future__ import annotations

from collections.abc import Callable

import click


class Crop(click.ParamType):
    """A share of the image between 0 and 1, or the word squash."""

    name = "share|squash"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        if value == "squash" or isinstance(value, float):
            return value
        try:
            share = float(str(value))
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            self.fail(f"{value!r} is neither a number above 0 and up to 1 nor squash.", param, ctx)
        return share


def _all(*options: Callable) -> Callable:
    """One decorator that applies several, the first one shown first in the help."""

    def decorate(function: Callable) -> Callable:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


engine_options = _all(
    click.option("--engine", type=click.Choice(["auto", "onnxruntime", "torch"]), default="auto"),
    click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16", "int8"]), default="auto"),
    click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps …"),
    click.option("--batch-size", type=click.IntRange(1, 4096), help="Images that pass the network at once."),
    click.option("--workers", type=click.IntRange(0, 256), help="Decoder threads. [default: from the cores]"),
    click.option("--force", is_flag=True, help="Accept int8 features below the promised agreement."),
)

column_options = _all(
    click.option("--image-column", "image_columns", multiple=True, help="Manifest column; may be repeated."),
    click.option("--label-column", "label_columns", multiple=True, help="A target each; may be repeated."),
    click.option("--split-column", help="Column that holds train, val or test."),
    click.option("--group", "group_column", help="Column whose equal values stay on one side of a split."),
    click.option("--sample-column", help="Column that names the sample. [default: its image]"),
    click.option("--covariate", "covariate_columns", multiple=True, help="Numeric column; may be repeated."),
)

reading_options = _all(
    column_options,
    click.option(
        "--val-fraction", type=click.FloatRange(0, 1, max_open=True), default=0.0, help="Of train → val."
    ),
    click.option("--test-fraction", type=click.FloatRange(0, 1, max_open=True), default=0.0, help="→ test."),
    click.option("--limit", type=click.IntRange(1), help="Only so many samples."),
)
