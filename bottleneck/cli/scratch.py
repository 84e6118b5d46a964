"""`bottleneck scratch`: the small CNN, or any backbone, trained from nothing."""

from __future__ import annotations

from typing import Any

import click

from bottleneck.cli.options import (
    cache_images_option,
    column_options,
    decoding_option,
    flags_of,
    input_options,
    limit_option,
    strict_option,
    test_fraction_option,
    trust_code_option,
)
from bottleneck.cli.terminal import Command, Terminal, show_result, shows_results
from bottleneck.cli.training_options import single_run_options, training_options
from bottleneck.training.config import AUGMENTS, ScratchConfig

flag = flags_of(ScratchConfig)


@click.command(cls=Command)
@click.argument("source", type=click.Path())
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    show_default="models/SOURCE--TARGET--scratch.safetensors",
    help="Model file to write.",
)
@flag("--backbone", help="Network to train, by a name that `bottleneck backbones` lists.")
@input_options(ScratchConfig.in_channels)
@decoding_option
@flag(
    "--target", show_default="the only one", help="Target (column of labels) to learn, if there are several."
)
@flag(
    "--augment", type=click.Choice(AUGMENTS), help="live trains on a new view of each image in every epoch."
)
@test_fraction_option
@limit_option
@trust_code_option
@column_options
@cache_images_option
@training_options(ScratchConfig)
@single_run_options(ScratchConfig)
@strict_option
@shows_results
def command(terminal: Terminal, source: str, tensorboard: str | None, **options: Any) -> None:
    """Train a network with random weights on the images of SOURCE: the baseline that transfer has to beat.

    SOURCE is what `bottleneck extract` takes, with labels. Several images per sample and covariates are taken
    from a manifest's columns.
    """
    from bottleneck.report.tensorboard import log_epochs
    from bottleneck.training.scratch import scratch

    with log_epochs(tensorboard) as log:
        terminal.log_epoch = log
        result = scratch(source, reporter=terminal, **options)
    show_result(terminal, result, f"Trained {options['backbone']} from scratch")
