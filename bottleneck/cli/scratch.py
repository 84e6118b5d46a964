"""`bottleneck scratch`: the small CNN, or any backbone, trained from nothing."""

from __future__ import annotations

import click

from bottleneck.cli.options import Crop, column_options, single_run_options, training_options
from bottleneck.cli.terminal import Terminal, show_result, shows_results


@click.command()
@click.argument("source")
@click.option(
    "-o", "--output", type=click.Path(), help="[default: models/SOURCE--TARGET--scratch.safetensors]"
)
@click.option(
    "--backbone", default="small_cnn", show_default=True, help="As `bottleneck backbones` lists it."
)
@click.option("--depth", type=click.IntRange(1, 6), help="Blocks of the small CNN. [default: 4]")
@click.option("--target", help="Which labels, where there are several.")
@click.option("--image-size", type=click.IntRange(8, 4096), help="Side of the network's input in pixels.")
@click.option("--crop", type=Crop(), help="Share of the resized image that is kept, or squash for all of it.")
@click.option("--in-channels", type=click.IntRange(1, 4), default=3, help="1 reads images as grey.")
@click.option(
    "--augment", type=click.Choice(["none", "live"]), default="none", help="live: new views each epoch."
)
@click.option("--test-fraction", type=click.FloatRange(0, 1, max_open=True), default=0.0, help="→ test.")
@click.option("--limit", type=click.IntRange(1), help="Only so many samples.")
@click.option("--trust-code", is_flag=True, help="Import a backbone given as package.module:function.")
@column_options
@training_options
@single_run_options
@shows_results
def command(terminal: Terminal, source: str, tensorboard: str | None, **options: object) -> None:
    """Train a network with random weights on the images of SOURCE: the baseline that transfer has to beat.

    SOURCE is what `bottleneck extract` takes, with labels. Several images per sample and covariates are taken
    from a manifest's columns.
    """
    from bottleneck.report import history
    from bottleneck.training.scratch import scratch

    options = {name: value for name, value in options.items() if value is not None}
    with history.tensorboard(tensorboard) as log:
        terminal.log_epoch = log
        result = scratch(source, reporter=terminal, **options)
    show_result(terminal, result, f"Trained {options['backbone']} from scratch")
