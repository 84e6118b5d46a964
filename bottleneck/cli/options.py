"""Flags that several commands share, and the types of their values.

A default is written once, as the attribute of a config class: `setting(Config, "--flag")` reads it there and
shows it in the help. The config modules import no torch, so `bottleneck COMMAND --help` is fast.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from bottleneck.data.config import LabelConfig, ReadConfig
from bottleneck.extraction.config import EngineConfig
from bottleneck.names import ENGINES, PRECISIONS

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
DEVICES = "auto, cpu, cuda, cuda:1, mps …"


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
        match = re.fullmatch(r"(\d{1,12}(?:\.\d+)?)\s*([kmg]i?)?b?", str(value).strip().lower(), re.ASCII)
        if not match:
            self.fail(f"{value!r} is not a size such as 512MiB or 4GB.", param, ctx)
        return int(float(match[1]) * UNITS[match[2] or ""])


def setting(config: type, *flags: str, **attributes: Any) -> Decorator:
    """Return a click option whose default is the attribute of `config` that has the parameter's name.

    flags : as for `click.option`. attributes : the other arguments of `click.option`; `show_default` may
    describe what a default of None means.
    """
    long_flag = next(flag for flag in flags if flag.startswith("--"))
    name = next((flag for flag in flags if flag.isidentifier()), long_flag[2:].replace("-", "_"))
    default = getattr(config, name)
    if isinstance(default, int) and isinstance(attributes.get("type"), Memory):
        attributes["show_default"] = f"{default / 2**30:g}GiB"
    return click.option(*flags, default=default, **{"show_default": True} | attributes)


def together(*options: Decorator) -> Decorator:
    """Return one decorator that applies several; the help shows them in this order."""

    def decorate(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


trust_code_option = click.option(
    "--trust-code", is_flag=True, help="Import a backbone that is named as package.module:function."
)

# For commands on a head, a model or a cache, which name the backbone that they were made with.
loading_options = together(
    click.option(
        "--weights", type=click.Path(), help="Weights file of the backbone, if it was made with such a file."
    ),
    trust_code_option,
)

engine_options = together(
    setting(
        EngineConfig,
        "--engine",
        type=click.Choice(ENGINES),
        help="Library that runs the network; torch-compiled first compiles for a minute.",
    ),
    setting(
        EngineConfig,
        "--precision",
        type=click.Choice(PRECISIONS),
        help="Number format in which the network computes; auto is fp32 on a CPU.",
    ),
    setting(EngineConfig, "--device", help=f"Device that runs the network: {DEVICES}"),
    setting(
        EngineConfig,
        "--batch-size",
        type=click.IntRange(1, 4096),
        show_default="the engine's best",
        help="Images that pass the network at once.",
    ),
    setting(
        EngineConfig,
        "--workers",
        type=click.IntRange(0, 256),
        show_default="one per core",
        help="Threads that decode images.",
    ),
    setting(
        EngineConfig,
        "--force",
        is_flag=True,
        help="Use an int8 engine even if its features differ from float32 by more than the bound.",
    ),
)

classes_option = setting(
    LabelConfig,
    "--classes",
    multiple=True,
    help="Target whose numbers are names of classes, not quantities; may be repeated.",
)
regression_option = setting(
    LabelConfig,
    "--regression",
    multiple=True,
    help="Target whose whole numbers are quantities, not names of classes; may be repeated.",
)

column_options = together(
    setting(
        ReadConfig,
        "--image-column",
        "image_columns",
        multiple=True,
        show_default="image, else file_name",
        help="Manifest column of image paths; repeat the flag for several images per sample.",
    ),
    setting(
        ReadConfig,
        "--label-column",
        "label_columns",
        multiple=True,
        show_default="label",
        help="Manifest column of labels; repeat the flag for several targets.",
    ),
    setting(
        ReadConfig,
        "--split-column",
        show_default="split, if there is one",
        help="Manifest column that contains train, val or test.",
    ),
    setting(
        ReadConfig,
        "--group",
        "group_column",
        help="Manifest column of groups: samples with equal values stay in one split and fold.",
    ),
    setting(
        ReadConfig,
        "--sample-column",
        show_default="the image path",
        help="Manifest column of unique sample names.",
    ),
    setting(
        ReadConfig,
        "--covariate",
        "covariate_columns",
        multiple=True,
        help="Manifest column of numbers that the head takes beside the features; may be repeated.",
    ),
    classes_option,
    regression_option,
)

test_fraction_option = setting(
    ReadConfig,
    "--test-fraction",
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the train samples to set aside as the test split.",
)
limit_option = setting(
    ReadConfig,
    "--limit",
    type=click.IntRange(1),
    help="Use only this many samples, spread evenly over splits and classes.",
)

reading_options = together(
    column_options,
    setting(
        ReadConfig,
        "--val-fraction",
        type=click.FloatRange(0, 1, max_open=True),
        help="Share of the train samples to set aside as the val split.",
    ),
    test_fraction_option,
    limit_option,
)

# For commands on a cache that may learn other labels than the cache holds.
labels_options = together(
    click.option(
        "--labels",
        type=click.Path(),
        help="Table (.csv, .jsonl, .parquet) of labels by image or sample, in place of the cache's labels.",
    ),
    click.option("--group", help="Column of the --labels table: samples with equal values stay in one fold."),
)


# A flag of training that is left out is None, which the library takes for its default.
training_options = together(
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
single_run_options = together(
    click.option("--seed", type=int, help="Of orders, draws and new weights. [default: 0]"),
    click.option("--tensorboard", type=click.Path(), help="Write the epochs as events below this folder."),
)
