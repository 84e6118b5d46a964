"""Flags that several commands share, so that one word means one thing everywhere."""

from __future__ import annotations

import re
from collections.abc import Callable

import click

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


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


class Memory(click.ParamType):
    """A size such as 512MiB, 4GB or a number of bytes."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,12}(?:\.\d+)?)\s*([kmg]i?)?b?", str(value).strip().lower(), re.ASCII)
        if not found:
            self.fail(f"{value!r} is not a size such as 512MiB or 4GB.", param, ctx)
        return int(float(found[1]) * UNITS[found[2] or ""])


def _all(*options: Callable) -> Callable:
    """One decorator that applies several, the first one shown first in the help."""

    def decorate(function: Callable) -> Callable:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


engine_options = _all(
    click.option(
        "--engine", type=click.Choice(["auto", "onnxruntime", "torch", "torch-compiled"]), default="auto"
    ),
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

# Of commands on a cache whose answers are to be others than the cache's own.
labels_options = _all(
    click.option(
        "--labels", type=click.Path(), help="Table of labels by image or sample, in place of the cache's."
    ),
    click.option("--group", help="Column of --labels whose equal values stay together."),
)

# A flag of training that is left out is None, which the library takes for its default.
training_options = _all(
    click.option(
        "--epochs", type=click.IntRange(1), help="At most. [default: 20; scratch: 200 steps or more]"
    ),
    click.option("--patience", type=click.IntRange(0), help="Epochs to wait for a better one. [default: 8]"),
    click.option("--batch-size", type=click.IntRange(1, 4096), help="Samples of a step. [default: 32]"),
    click.option("--optimizer", type=click.Choice(["adamw", "sgd"]), help="[default: adamw]"),
    click.option(
        "--lr", type=click.FloatRange(0, min_open=True), help="Of the head. [default: 0.002, sgd 0.1]"
    ),
    click.option("--weight-decay", type=click.FloatRange(0), help="Not of biases and norms. [default: 0]"),
    click.option("--label-smoothing", type=click.FloatRange(0, 1, max_open=True), help="[default: 0.1]"),
    click.option(
        "--val-fraction",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        help="Of train, where there is no val split. [default: 0.2]",
    ),
    click.option("--memory", type=Memory(), help="For maps or pixels, else read in chunks. [default: 1GiB]"),
    click.option("--device", help="auto, cpu, cuda, cuda:1, mps … [default: auto]"),
)

# Of a single run; a comparison has its own seeds.
single_run_options = _all(
    click.option("--seed", type=int, help="Of orders, draws and new weights. [default: 0]"),
    click.option("--tensorboard", type=click.Path(), help="Write the epochs as events below this folder."),
)
