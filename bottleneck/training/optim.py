"""Which parameters learn how fast, and when: groups by depth, the schedule of the learning rate, unfreezing.

A layer group is a block of the backbone, or the head. Depth counts down from the head (0): a block at depth d
learns at `lr · backbone_ratio · decay^(d − 1)`, since lower layers are more general and need less change
(Howard and Ruder 2018). The ratio of 0.1 is that of LP-FT (Kumar et al. 2022).

Why labels are smoothed (`TrainingConfig.label_smoothing`): a head that was fitted first classifies all of
train correctly and with great confidence. The loss is then near 0, and its gradient comes from the few
samples nearest to the boundary. The steps of AdamW do not shrink with the gradient, so these few samples move
the weights at the full rate. With smoothed labels every sample contributes to the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bottleneck.training.config import OptimConfig

FUSED = ("cpu", "cuda")  # kinds of devices on which torch updates all parameters in one pass


@dataclass(frozen=True)
class LayerGroup:
    """Parameters that share a learning rate.

    name : of the block, or "head".
    depth : 0 for the head, 1 for the uppermost block, …
    parameters : (name, parameter) pairs.
    """

    name: str
    depth: int
    parameters: tuple[tuple[str, nn.Parameter], ...]


def parameter_groups(layers: Iterable[LayerGroup], config: OptimConfig) -> list[dict[str, Any]]:
    """Optimizer groups: per layer one with weight decay and one, for biases and norms, without.

    Each group has `base_lr`, the greatest rate of the schedule, and `start_epoch`, its first epoch of
    training.
    """
    groups = []
    for layer in layers:
        scale = config.backbone_ratio * config.decay ** (layer.depth - 1) if layer.depth else 1.0
        common = {
            "name": layer.name,
            "base_lr": config.learning_rate * scale,
            "lr": config.learning_rate * scale,
            "start_epoch": 1 + config.unfreeze_every * max(0, layer.depth - 1),
        }
        matrices = [parameter for _, parameter in layer.parameters if parameter.ndim > 1]
        vectors = [parameter for _, parameter in layer.parameters if parameter.ndim <= 1]
        if matrices:
            groups.append({**common, "params": matrices, "weight_decay": config.weight_decay})
        if vectors:
            groups.append({**common, "params": vectors, "weight_decay": 0.0})
    return groups


def build_optimizer(layers: Sequence[LayerGroup], config: OptimConfig) -> torch.optim.Optimizer:
    """SGD with momentum 0.9, or AdamW, over the groups of `parameter_groups`.

    On the devices in FUSED one pass updates all parameters, which is faster.
    """
    groups = parameter_groups(layers, config)
    fused = all(parameter.device.type in FUSED for group in groups for parameter in group["params"])
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9, fused=fused)


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then half a cosine to 0. It depends on the step alone, so no checkpoint stores it.

    steps : of the whole run. warmup : share of them.
    """

    steps: int
    warmup: float = 0.1

    def factor(self, step: int) -> float:
        """Learning rate at `step` (from 0) over its greatest."""
        rising = round(self.steps * self.warmup)
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, self.steps - rising)))

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set every group's rate for `step`."""
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * self.factor(step)


def unfreeze(optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """Turn gradients on for groups whose `start_epoch` has come, and off for the others."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.requires_grad_(epoch >= group["start_epoch"])


def group_records(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return each parameter group with its greatest learning rate, weight decay, size and first epoch."""
    return [
        {
            "name": group["name"],
            "learning_rate": group["base_lr"],
            "weight_decay": group["weight_decay"],
            "parameters": sum(parameter.numel() for parameter in group["params"]),
            "start_epoch": group["start_epoch"],
        }
        for group in optimizer.param_groups
    ]


def learning_rates(optimizer: torch.optim.Optimizer, epoch: int) -> dict[str, float]:
    """Return the present rate of each layer group by its name; 0 where `epoch` does not train it yet."""
    return {
        group["name"]: group["lr"] if epoch >= group["start_epoch"] else 0.0
        for group in optimizer.param_groups
    }
