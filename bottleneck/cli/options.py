"""Flags that several commands share, and the types of their values.

A default is written once, as the attribute of a config class: `setting(Config, "--flag")` reads it there and
shows it in the help. The config modules import no torch, so `bottleneck COMMAND --help` is fast.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from bottleneck.data.config import LabelConfig, ReadConfig
from bottleneck.extraction.config import EngineConfig, ExtractConfig
from bottleneck.names import (
    DECODINGS,
    DEFAULT_CHANNELS,
    ENGINES,
    EXACT,
    PRECISIONS,
    SMALL_CNN,
    SMALL_CNN_DEPTH,
)

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


class ClusterAddress(click.ParamType):
    """Where a Ray cluster is: HOST:PORT, or the word auto."""

    name = "host:port"
    choices = ("auto",)

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if str(value) not in self.choices and ":" not in str(value):
            self.fail(f"{value!r} is no HOST:PORT. Put SOURCE before --ray, or write --ray=auto.", param, ctx)
        return str(value)


def flags_of(config: type) -> Callable[..., Decorator]:
    """Return a function that makes the flags of a command from the fields of its config, see `setting`."""
    return partial(setting, config)


def setting(config: type, *flags: str, **attributes: Any) -> Decorator:
    """Return a click option whose default is the attribute of `config` that has the parameter's name.

    flags : as for `click.option`. attributes : the other arguments of `click.option`; `show_default` may
    describe what a default of None means.
    """
    long_flag = next(flag for flag in flags if flag.startswith("--"))
    name = next((flag for flag in flags if flag.isidentifier()), long_flag[2:].replace("-", "_"))
    default = getattr(config, name)
    if isinstance(default, int) and isinstance(attributes.get("type"), Memory):
        attributes.setdefault("show_default", f"{default / 2**30:g}GiB")
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

strict_option = click.option(
    "--strict",
    is_flag=True,
    help="Refuse decisions on messy input that change what is learnt or measured, instead of noting them.",
)

flip_option = click.option(
    "--flip", is_flag=True, help="Average the probabilities of each image and of its mirror image."
)

trust_options = together(
    click.option(
        "--reject",
        type=float,
        metavar="SHARE",
        help="Call samples unknown that are unlike those of training, and of known ones SHARE, such as 0.05.",
    ),
    click.option(
        "--coverage",
        type=float,
        metavar="SHARE",
        help="Give sets of classes, of which SHARE, such as 0.9, contain the true class.",
    ),
)

# For commands on a head, a model or a cache, which name the backbone that they were made with.
loading_options = together(
    click.option(
        "--weights", type=click.Path(), help="Weights file of the backbone, if it was made with such a file."
    ),
    trust_code_option,
)


def input_options(in_channels: int | None) -> Decorator:
    """Flags that describe the network's input, and the depth of the small CNN. in_channels : the default."""
    return together(
        click.option(
            "--image-size",
            type=click.IntRange(8, 4096),
            show_default="the network's own",
            help="Side of the network's input in pixels.",
        ),
        click.option(
            "--crop",
            type=Crop(),
            show_default="the network's own",
            help="Share of the resized image that is kept, or squash to keep all of it.",
        ),
        click.option(
            "--in-channels",
            type=click.IntRange(1, 4),
            default=in_channels,
            show_default=str(in_channels or DEFAULT_CHANNELS),
            help="Colour channels of the network's input; 1 reads images as grey.",
        ),
        click.option(
            "--depth",
            type=click.IntRange(1, 6),
            show_default=str(SMALL_CNN_DEPTH),
            help=f"Blocks of the small CNN, for the backbone {SMALL_CNN}.",
        ),
    )


decoding_option = setting(
    ExtractConfig,
    "--decoding",
    type=click.Choice(DECODINGS),
    show_default=EXACT,
    help="How JPEGs are decoded: scaled takes large ones at 1/2, 1/4 or 1/8 of their size where that leaves "
    "twice what the network needs, with features that differ a little.",
)

_engine, _reading = flags_of(EngineConfig), flags_of(ReadConfig)

engine_options = together(
    _engine(
        "--engine",
        type=click.Choice(ENGINES),
        help="Library that runs the network; auto takes the fastest that is installed and agrees with torch, "
        "torch-compiled first compiles for a minute.",
    ),
    _engine(
        "--precision",
        type=click.Choice(PRECISIONS),
        help="Number format in which the network computes: auto is fp32 on a CPU; fast is bf16 on processors "
        "that have units for it, else fp32.",
    ),
    _engine("--device", help=f"Device that runs the network: {DEVICES}"),
    _engine(
        "--batch-size",
        type=click.IntRange(1, 4096),
        show_default="the engine's best",
        help="Images that pass the network at once.",
    ),
    _engine(
        "--workers",
        type=click.IntRange(0, 256),
        show_default="one per core",
        help="Threads that decode images.",
    ),
    _engine(
        "--force",
        is_flag=True,
        help="Use an int8 engine, or scaled decoding, even if features differ by more than the bound; and "
        "int8 for a model that did not learn in it, calibrated on the images to predict.",
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

separator_option = setting(
    LabelConfig,
    "--label-separator",
    show_default="none: a cell is one label",
    help="Character between several labels in one cell, such as |.",
)

image_column_option = _reading(
    "--image-column",
    "image_columns",
    multiple=True,
    show_default="image, else file_name",
    help="Manifest column of image paths; repeat the flag for several images per sample.",
)
sample_column_option = _reading(
    "--sample-column", show_default="the image path", help="Manifest column of unique sample names."
)
covariate_option = _reading(
    "--covariate",
    "covariate_columns",
    multiple=True,
    help="Manifest column of numbers that the head takes beside the features; may be repeated.",
)
input_column_options = together(image_column_option, sample_column_option, covariate_option)

column_options = together(
    image_column_option,
    _reading(
        "--label-column",
        "label_columns",
        multiple=True,
        show_default="label",
        help="Manifest column of labels; repeat the flag for several targets.",
    ),
    _reading(
        "--split-column",
        show_default="split, if there is one",
        help="Manifest column that contains train, val or test.",
    ),
    _reading(
        "--group",
        "group_column",
        help="Manifest column of groups: samples with equal values stay in one split and fold.",
    ),
    sample_column_option,
    covariate_option,
    classes_option,
    regression_option,
    separator_option,
)

test_fraction_option = _reading(
    "--test-fraction",
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the train samples to set aside as the test split.",
)
limit_option = _reading(
    "--limit",
    type=click.IntRange(1),
    help="Use only this many samples, spread evenly over splits and classes.",
)

cache_images_option = _reading(
    "--cache-images",
    type=click.Path(),
    metavar="DIR",
    help="Folder that keeps images read over a network, so that the next run reads none of them again.",
)

shard_option = _reading(
    "--shard",
    metavar="I/N|auto",
    help="Extract shard I of N, to a file of its own; auto takes both from a Slurm array or torchrun.",
)

reading_options = together(
    column_options,
    _reading(
        "--val-fraction",
        type=click.FloatRange(0, 1, max_open=True),
        help="Share of the train samples to set aside as the val split.",
    ),
    test_fraction_option,
    limit_option,
    cache_images_option,
)

# For commands on a cache that may learn other labels than the cache holds.
labels_options = together(
    click.option(
        "--labels",
        type=click.Path(),
        help="Table (.csv, .jsonl, .parquet) of labels by image or sample, in place of the cache's labels.",
    ),
    click.option("--group", help="Column of the --labels table: samples with equal values stay in one fold."),
    separator_option,
)
