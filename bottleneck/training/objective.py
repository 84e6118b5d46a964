"""What a network is trained for: the loss, the predicted class, and the loss that compares epochs.

Two classes may have two logits (softmax) or one (sigmoid); everything below reads the form off the logits.

Shapes: B samples, K logits (K = classes, or 1 for two classes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional

LOG_TEMPERATURES = (math.log(0.01), math.log(100.0))


@dataclass(frozen=True)
class Objective:
    """Cross-entropy over `classes` classes.

    label_smoothing : share of the target spread evenly over the classes (Szegedy et al. 2016).
    """

    classes: int
    label_smoothing: float = 0.0

    @property
    def chance(self) -> float:
        """Loss of a uniform guess, in nats."""
        return math.log(self.classes)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss, a scalar. logits : (B, K) float, labels : (B,) int64."""
        if logits.shape[1] > 1:
            return functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        wanted = labels.to(logits.dtype) * (1 - self.label_smoothing) + self.label_smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits[:, 0], wanted)


def predicted(logits: Tensor) -> Tensor:
    """(B,) int64 codes of the likeliest class."""
    return logits.argmax(dim=1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()


def two_logits(logits: Tensor) -> Tensor:
    """(B, max(K, 2)) logits whose softmax gives the probabilities: a single logit z becomes (−z/2, z/2)."""
    return logits if logits.shape[1] > 1 else torch.cat([-logits / 2, logits / 2], dim=1)


def calibrated_loss(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """The temperature T that minimises the log loss of softmax(logits / T), and that loss (Guo et al. 2017).

    Networks are compared by this loss, so that none looks better for being bolder or shyer alone. It is
    convex in 1/T, so it has one minimum in log T. Logits that are not finite lose against all others.
    """
    logits = two_logits(logits).double()
    if not torch.isfinite(logits).all():
        return 1.0, math.inf
    found = minimize_scalar(
        lambda log_t: functional.cross_entropy(logits / math.exp(log_t), labels).item(),
        bounds=LOG_TEMPERATURES,
        method="bounded",
    )
    return math.exp(found.x), float(found.fun)
