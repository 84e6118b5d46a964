"""Flags of the commands that train a network.

They have a module of their own, so that other commands do not wait for the config classes of training.
"""

from __future__ import annotations

from typing import Any

import click

from bottleneck.cli.options import DEVICES, Decorator, Memory, flags_of, setting, together
from bottleneck.training.config import (
    LEAST_STEPS,
    OPTIMIZERS,
    TRAINING_PRECISIONS,
    OptimConfig,
    TrainingConfig,
)


def training_options(config: type[TrainingConfig]) -> Decorator:
    """Flags of the commands that train, with the defaults of `config`."""
    epochs: dict[str, Any] = {"default": config.epochs, "show_default": True}
    if config.extend:
        text = f"{config.epochs}, or as many as make {LEAST_STEPS} steps"
        epochs = {"default": None, "show_default": text}
    flag = flags_of(config)
    return together(
        click.option("--epochs", type=click.IntRange(1), help="Most epochs to train.", **epochs),
        flag(
            "--patience",
            type=click.IntRange(0),
            help="Stop after this many epochs without a better one on val; 0 never stops early.",
        ),
        flag("--batch-size", type=click.IntRange(1, 4096), help="Samples of one training step."),
        flag("--optimizer", type=click.Choice(OPTIMIZERS), help="adamw, or sgd with momentum 0.9."),
        flag(
            "--lr",
            type=click.FloatRange(0, min_open=True),
            show_default=_rates(config),
            help="Largest learning rate, which is that of the head.",
        ),
        flag(
            "--weight-decay",
            type=click.FloatRange(0),
            help="Weight decay of all parameters but biases and norms.",
        ),
        flag(
            "--label-smoothing",
            type=click.FloatRange(0, 1, max_open=True),
            help="Share of each label that is spread over all classes.",
        ),
        flag(
            "--val-fraction",
            type=click.FloatRange(0, 1, min_open=True, max_open=True),
            help="Share of the train samples that becomes val if there is no val split.",
        ),
        flag(
            "--memory",
            type=Memory(),
            help="Memory for feature maps or pixels, such as 512MiB; more is read in chunks.",
        ),
        flag("--device", help=f"Device to train on: {DEVICES}"),
        flag(
            "--precision",
            type=click.Choice(TRAINING_PRECISIONS),
            help="bf16 computes the steps in bfloat16, on a CPU (AMX, AVX512-BF16) or GPU with units for it.",
        ),
    )


def _rates(config: type[OptimConfig]) -> str:
    """The default learning rate of each optimizer."""
    return ", ".join(f"{rate:g} for {name}" for name, rate in config.rates.items())


def single_run_options(config: type[TrainingConfig]) -> Decorator:
    """Flags of the commands that train one network; a comparison draws its own seeds."""
    return together(
        setting(
            config, "--seed", type=int, help="Seed of the order of samples, random draws and new weights."
        ),
        click.option("--tensorboard", type=click.Path(), help="Folder for TensorBoard events of the epochs."),
    )
