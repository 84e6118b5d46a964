"""What a network is trained for, and how it is measured on a set of samples.

Two classes may have two logits (softmax) or one (sigmoid); every function reads the form from the logits.

Shapes: B samples of a batch, n samples of a set, L logits (L = classes, or 1 for two classes).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bottleneck.heads.metrics import classification_metrics, fit_temperature, least_loss
from bottleneck.training.batches import Batches


@dataclass(frozen=True)
class Objective:
    """Cross-entropy over `classes` classes.

    label_smoothing : share of the target that is spread evenly over the classes (Szegedy et al. 2016).
    """

    classes: int
    label_smoothing: float = 0.0

    @property
    def chance(self) -> float:
        """Loss of a uniform guess, in nats."""
        return math.log(self.classes)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss, a scalar. logits : (B, L) float, labels : (B,) int64."""
        if logits.shape[1] > 1:
            return functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        wanted = labels.to(logits.dtype) * (1 - self.label_smoothing) + self.label_smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits[:, 0], wanted)


def predicted(logits: Tensor) -> Tensor:
    """(B,) int64 codes of the likeliest class."""
    return logits.argmax(dim=1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()


def two_logits(logits: Tensor) -> Tensor:
    """(B, max(L, 2)) logits whose softmax gives the probabilities: a single logit z becomes (−z/2, z/2)."""
    return logits if logits.shape[1] > 1 else torch.cat([-logits / 2, logits / 2], dim=1)


def calibrated_loss(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """The temperature of `heads.metrics.fit_temperature`, and the least log loss over all temperatures.

    Epochs are compared by this loss, so that none is preferred for being more or less confident alone. Logits
    that are not finite have an infinite loss.
    """
    codes, values = labels.numpy(), two_logits(logits).double().numpy()
    if not np.isfinite(values).all():
        return 1.0, math.inf
    return fit_temperature(codes, values, "softmax"), least_loss(codes, values)


@dataclass(frozen=True)
class Measured:
    """loss : as trained, in nats. calibrated : log loss at the best temperature. temperature : of the
    model (`heads.metrics.fit_temperature`)."""

    accuracy: float
    loss: float
    calibrated: float
    temperature: float

    def beats(self, other: Measured) -> bool:
        """More accurate, or as accurate with a lower log loss at its best temperature."""
        return (self.accuracy, -self.calibrated) > (other.accuracy, -other.calibrated)


def measure(logits: Tensor, labels: Tensor, objective: Objective) -> Measured:
    """Accuracy and losses. logits : (n, L), labels : (n,)."""
    temperature, calibrated = calibrated_loss(logits, labels)
    return Measured(
        accuracy=(predicted(logits) == labels).double().mean().item(),
        loss=objective.loss(logits, labels).item(),
        calibrated=calibrated,
        temperature=temperature,
    )


def metrics_of(
    logits: Tensor, labels: Tensor, class_names: tuple[str, ...], temperature: float
) -> dict[str, Any]:
    """The metrics of `heads.metrics` at a temperature. logits : (n, L), labels : (n,) codes."""
    probabilities = torch.softmax(two_logits(logits).double() / temperature, dim=1).numpy()
    return classification_metrics(labels.numpy(), probabilities, class_names)


def logits_of(
    module: nn.Module,
    batches: Batches,
    device: torch.device,
    call: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """(n, L) float32 logits and (n,) labels of all samples, in the order of unshuffled `batches`, on the CPU.

    The module is measured in evaluation mode and then set back to its mode. call : is called in its place.
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
