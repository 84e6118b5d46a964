"""How a network does on a set of samples.

Shapes: n samples, K logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bottleneck.training.batches import Batches
from bottleneck.training.objective import Objective, calibrated_loss, predicted


@dataclass(frozen=True)
class Measured:
    """loss : as trained, in nats. calibrated : log loss at the best temperature, which is `temperature`."""

    accuracy: float
    loss: float
    calibrated: float
    temperature: float

    def beats(self, other: Measured) -> bool:
        """More accurate, or as accurate with a lower log loss at its best temperature."""
        return (self.accuracy, -self.calibrated) > (other.accuracy, -other.calibrated)


def logits_of(
    module: nn.Module,
    batches: Batches,
    device: torch.device,
    call: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """(n, K) float32 logits and (n,) labels of all samples, in the order of unshuffled `batches`, on the CPU.

    The module is measured in eval mode and gets its own mode back. call : what is asked instead of it.
    """
    training = module.training
    module.eval()
    logits, labels = [], []
    try:
        with torch.inference_mode():
            for batch in batches.epoch(0):
                on_device = batch.to(device)
                logits.append((call or module)(on_device.rows, on_device.covariates).float().cpu())
                labels.append(batch.labels)
    finally:
        module.train(training)
    return torch.cat(logits), torch.cat(labels)


def measure(logits: Tensor, labels: Tensor, objective: Objective) -> Measured:
    """Accuracy and losses. logits : (n, K), labels : (n,)."""
    temperature, calibrated = calibrated_loss(logits, labels)
    return Measured(
        accuracy=(predicted(logits) == labels).double().mean().item(),
        loss=objective.loss(logits, labels).item(),
        calibrated=calibrated,
        temperature=temperature,
    )
