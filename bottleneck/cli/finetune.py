"""`bottleneck finetune`: unfreeze blocks below a head and train them from where the head stands."""

from __future__ import annotations

from typing import Any

import click

from bottleneck.cli.options import (
    flags_of,
    labels_options,
    loading_options,
    strict_option,
)
from bottleneck.cli.terminal import Command, Terminal, show_result, shows_results
from bottleneck.cli.training_options import single_run_options, training_options
from bottleneck.training.config import AUGMENTS, BATCHNORMS, FinetuneConfig

flag = flags_of(FinetuneConfig)


@click.command(cls=Command)
@click.argument("cache", type=click.Path())
@click.option(
    "--head",
    type=click.Path(),
    required=True,
    help="Head file that was fitted on CACHE; training starts at it.",
)
@labels_options
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    show_default="models/CACHE--TARGET--BLOCK.safetensors",
    help="Model file to write.",
)
@flag(
    "--unfreeze",
    type=str,
    help="What to train: a number of blocks below the head, a block or node (it and all above it), or all.",
)
@flag(
    "--views",
    type=click.IntRange(0),
    help="Number of cached views per image, of which each epoch draws one; 0 trains on the plain features.",
)
@flag(
    "--augment",
    type=click.Choice(AUGMENTS),
    help="live makes a new view of each image in every epoch and runs the whole network on it.",
)
@flag(
    "--batchnorm",
    type=click.Choice(BATCHNORMS),
    help="fixed leaves the statistics of BatchNorm as they are; train updates them from each batch.",
)
@flag(
    "--backbone-ratio",
    type=click.FloatRange(0, min_open=True),
    help="Learning rate of the topmost unfrozen block, divided by that of the head.",
)
@flag(
    "--decay",
    type=click.FloatRange(0, 1, min_open=True),
    help="Learning rate of a block, divided by that of the block above it.",
)
@flag(
    "--unfreeze-every",
    type=click.IntRange(0),
    help="Epochs after which the next block below starts to train; 0 trains all from the first step.",
)
@click.option(
    "--find-lr", type=click.Path(), help="Only try learning rates, and draw their losses to this PNG file."
)
@loading_options
@training_options(FinetuneConfig)
@single_run_options(FinetuneConfig)
@strict_option
@shows_results
def command(
    terminal: Terminal,
    cache: str,
    head: str,
    find_lr: str | None,
    tensorboard: str | None,
    strict: bool,
    **options: Any,
) -> None:
    """Unfreeze the blocks below HEAD and train them with it, from CACHE: the frozen trunk does not run.

    Training starts at the head's own logits, and what is saved is never worse on val than the head.
    """
    from bottleneck.report.tensorboard import log_epochs
    from bottleneck.training.finetune import find_learning_rate, finetune

    if find_lr:
        from bottleneck.report.curves import rate_curve

        options.pop("output")
        config = FinetuneConfig(**options)
        search = find_learning_rate(cache, head, config, strict=strict, reporter=terminal)
        picture = rate_curve(search, find_lr)
        values = {**search.to_json(), "figure": str(picture)}
        terminal.result(values, f"Try --lr {search.lr:.2g}. The curve is in {picture}")
        return
    with log_epochs(tensorboard) as log:
        terminal.log_epoch = log
        result = finetune(cache, head, strict=strict, reporter=terminal, **options)
    show_result(terminal, result, f"Fine-tuned {', '.join(reversed(result.unfrozen))}")
