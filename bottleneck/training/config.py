"""What fine-tuning and training from scratch share: settings, batches, the loop, figures on every split.

Shapes: n samples of a split, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from bottleneck.engines.device import resolve_device
from bottleneck.errors import FitError
from bottleneck.heads.metrics import measure
from bottleneck.threads import available_cores, use_torch_threads
from bottleneck.training.batches import DEFAULT_MEMORY, Batches, Rows
from bottleneck.training.checkpoint import Checkpoint
from bottleneck.training.loop import Training
from bottleneck.training.loss import Objective, logits_of, two_logits
from bottleneck.training.optim import LayerGroup, OptimConfig, Schedule, build_optimizer
from bottleneck.training.split_rows import Sets

# Few samples make short epochs. A new network needs some steps whatever they are: BatchNorm's statistics
# alone take 20 to settle, and until then val says nothing.
LEAST_STEPS = 200


@dataclass(frozen=True)
class RunConfig:
    """How long, on what, in which portions.

    epochs : at most.
    patience : epochs without a better one on val after which to stop; 0 goes on to the end.
    batch_size : samples of a step.
    label_smoothing : share of the target spread over all classes (why 0.1: see `optim`).
    val_fraction : of train, where there is no val split.
    seed : of orders, draws and new weights.
    memory : bytes that maps or pixels may take; what does not fit is read in shuffled chunks.
    device : "auto", "cpu", "cuda", "mps" …
    """

    epochs: int = 20
    patience: int = 8
    batch_size: int = 32
    label_smoothing: float = 0.1
    val_fraction: float = 0.2
    seed: int = 0
    memory: int = DEFAULT_MEMORY
    device: str = "auto"
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("patience", 0), ("batch_size", 1), ("memory", 1)):
            if getattr(self, name) < low:
                raise FitError(f"{name} is {getattr(self, name)}; expected {low} or more.")
        if not 0 <= self.label_smoothing < 1:
            raise FitError(f"label_smoothing is {self.label_smoothing}; expected 0 up to 1.")


def run_config(options: dict[str, Any], defaults: OptimConfig | None = None) -> RunConfig:
    """Take the fields of RunConfig and of OptimConfig out of `options`; None stands for the default."""
    optim, given = vars(defaults or OptimConfig()), _taken(options, OptimConfig)
    if given.get("optimizer", optim["optimizer"]) != optim["optimizer"]:
        optim = {**optim, "lr": None}  # a rate is one optimizer's
    optim = {**optim, **given}
    return RunConfig(**_taken(options, RunConfig), optim=OptimConfig(**optim))


def enough_steps(config: RunConfig, samples: int) -> RunConfig:
    """The same run with more epochs, and more patience in proportion, where its steps would be too few."""
    steps = config.epochs * -(-samples // config.batch_size)
    times = max(1, -(-LEAST_STEPS // steps))
    return replace(config, epochs=config.epochs * times, patience=config.patience * times)


def _taken(options: dict[str, Any], kind: type) -> dict[str, Any]:
    names = {item.name for item in fields(kind)} - {"optim"}
    taken = {name: options.pop(name) for name in names & options.keys()}
    return {name: value for name, value in taken.items() if value is not None}


@dataclass(frozen=True)
class Inputs:
    """Rows by image: `train` as training sees them (views, perhaps), `plain` as prediction does."""

    train: Rows
    plain: Rows


def build_training(
    network: nn.Module,
    layers: list[LayerGroup],
    inputs: Inputs,
    sets: Sets,
    classes: int,
    config: RunConfig,
    checkpoint: Checkpoint | None = None,
) -> Training:
    """A run of the loop, ready to start.

    network : called with rows and covariates. layers : of depth 0, 1, …; what is in none stays as it is.
    """
    device = torch.device(resolve_device(config.device))
    use_torch_threads(available_cores())
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    network.to(device).train()
    train = Batches(
        inputs.train, sets.samples("train"), config.batch_size, seed=config.seed, memory=config.memory
    )
    return Training(
        module=network,
        objective=Objective(classes, config.label_smoothing),
        optimizer=build_optimizer(layers, config.optim),
        schedule=Schedule(config.epochs * train.steps, config.optim.warmup),
        train=train,
        val=plain_batches(inputs, sets, "val", config),
        epochs=config.epochs,
        patience=config.patience,
        clip=config.optim.clip,
        checkpoint=checkpoint,
        device=device,
    )


def plain_batches(inputs: Inputs, sets: Sets, split: str, config: RunConfig) -> Batches:
    """The samples of a split in their order, as prediction sees them."""
    return Batches(
        inputs.plain, sets.samples(split), 2 * config.batch_size, shuffle=False, memory=config.memory
    )


def split_metrics(
    network: nn.Module,
    inputs: Inputs,
    sets: Sets,
    class_names: tuple[str, ...],
    temperature: float,
    config: RunConfig,
) -> dict[str, dict[str, Any]]:
    """What `heads.metrics` measures, on every split that exists. Call it once, when all is chosen."""
    device = torch.device(resolve_device(config.device))
    found = {}
    for split in sets.rows:
        logits, labels = logits_of(network, plain_batches(inputs, sets, split, config), device)
        found[split] = metrics_of(logits, labels, class_names, temperature)
    return found


def metrics_of(
    logits: Tensor, labels: Tensor, class_names: tuple[str, ...], temperature: float
) -> dict[str, Any]:
    """Metrics of logits (n, C) or (n, 1) at a temperature. labels : (n,) codes."""
    probabilities = torch.softmax(two_logits(logits).double() / temperature, dim=1).numpy()
    return measure("class", labels.numpy(), probabilities, class_names)
