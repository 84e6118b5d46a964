"""`bottleneck finetune`: unfreeze blocks below a head and train them from where the head stands."""

from __future__ import annotations

import click

from bottleneck.cli.options import labels_options, single_run_options, training_options
from bottleneck.cli.terminal import Terminal, show_result, shows_results


@click.command()
@click.argument("cache", type=click.Path())
@click.option("--head", type=click.Path(), required=True, help="A head that was fitted on CACHE.")
@labels_options
@click.option("-o", "--output", type=click.Path(), help="[default: models/CACHE--TARGET--BLOCK.safetensors]")
@click.option(
    "--unfreeze",
    default="1",
    show_default=True,
    help="A number of blocks, a block or node (it and all above it), or all.",
)
@click.option("--views", type=click.IntRange(0), default=0, help="Draw one of so many cached views an epoch.")
@click.option(
    "--augment",
    type=click.Choice(["none", "live"]),
    default="none",
    help="live: a new view of each image in each epoch, the trunk run on it.",
)
@click.option("--batchnorm", type=click.Choice(["fixed", "train"]), default="fixed", show_default=True)
@click.option(
    "--backbone-ratio",
    type=click.FloatRange(0, min_open=True),
    help="Its rate over the head's. [default: 0.1]",
)
@click.option(
    "--decay", type=click.FloatRange(0, 1, min_open=True), help="From block to block. [default: 0.8]"
)
@click.option("--unfreeze-every", type=click.IntRange(0), help="Epochs from block to block; 0: all at once.")
@click.option("--find-lr", type=click.Path(), help="Only try learning rates, and draw the curve to this PNG.")
@click.option("--weights", help="The backbone's weights file, where the cache was made with one.")
@click.option(
    "--trust-code", is_flag=True, help="Import a backbone that CACHE names as package.module:function."
)
@training_options
@single_run_options
@shows_results
def command(
    terminal: Terminal, cache: str, head: str, find_lr: str | None, tensorboard: str | None, **options: object
) -> None:
    """Unfreeze the blocks below HEAD and train them with it, from CACHE: the frozen trunk does not run.

    Training starts at the head's own logits, and what is saved is never worse on val than the head.
    """
    from bottleneck.report import history
    from bottleneck.training.config import FinetuneConfig
    from bottleneck.training.finetune import find_learning_rate, finetune

    options = {name: value for name, value in options.items() if value is not None}
    if find_lr:
        options.pop("output", None)
        found = find_learning_rate(cache, head, FinetuneConfig(**options), reporter=terminal)
        picture = history.rate_curve(found, find_lr)
        terminal.result(
            {**vars(found), "figure": str(picture)}, f"Try --lr {found.lr:.2g}. The curve is in {picture}"
        )
        return
    with history.tensorboard(tensorboard) as log:
        terminal.log_epoch = log
        result = finetune(cache, head, reporter=terminal, **options)
    show_result(terminal, result, f"Fine-tuned {', '.join(reversed(result.unfrozen))}")
