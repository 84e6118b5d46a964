"""How probably each label is wrong, by a model of labels of which a part was changed at random.

A held-out probability p of a class is first sharpened or softened to q, q ∝ p^(1/t). A label is the class of
the sample, or, with probability e, any of the other K − 1 classes:

    P(label) = (1 − e) q(label) + e (1 − q(label)) / (K − 1)

e is that of the greatest likelihood for each t, and each t counts by its likelihood, since few samples leave
several possible. The second term's part of P(label) is the probability that the label is wrong. (Lawrence and
Schölkopf 2001, "Estimating a kernel Fisher discriminant in the presence of label noise"; of the temperature
Guo et al. 2017.) A hesitant head alone does not make labels wrong here: t explains it, and e stays near 0.

Shapes: n samples, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

MOST = 1 << 20  # probabilities that t and e are estimated from, and that are judged together
SMALLEST = 1e-12  # of a probability
LOG_T = np.linspace(-3, 3, 25)  # values of log t
LEAST_WEIGHT = 1e-3  # of a value of t that is looked at for every sample
LOG_ODDS = (-12.0, 0.0)  # of e: at most half of the labels are wrong


@dataclass(frozen=True)
class LabelNoise:
    """share : e, the share of wrong labels. wrong : (n,) float64, the probability that each label is."""

    share: float
    wrong: np.ndarray


def label_noise(labels: np.ndarray, probabilities: np.ndarray) -> LabelNoise:
    """Estimate how many of the labels (n,) are wrong, and which, from held-out probabilities (n, K)."""
    n, classes = probabilities.shape
    size = max(1, MOST // classes)
    few = np.unique(np.linspace(0, n - 1, min(n, size)).astype(int))
    logs, of = _logs(probabilities[few]), labels[few]

    fits = [_best_share(_sharpened(logs, of, log_t), classes) for log_t in LOG_T]
    shares, losses = (np.array(each) for each in zip(*fits, strict=True))
    weights = np.exp(-len(few) * (losses - losses.min()))
    weights /= weights.sum()
    chance = np.zeros(n)
    for start in range(0, n, size):
        here = slice(start, start + size)
        logs = _logs(probabilities[here])
        for log_t, share, weight in zip(LOG_T, shares, weights, strict=True):
            if weight >= LEAST_WEIGHT:
                right, wrong = _terms(_sharpened(logs, labels[here], log_t), share, classes)
                chance[here] += weight * wrong / (right + wrong)
    return LabelNoise(float(weights @ shares), chance)


def _logs(probabilities: np.ndarray) -> np.ndarray:
    """Return the logarithms (n, K) float64."""
    return np.log(np.maximum(probabilities, SMALLEST, dtype=np.float64))


def _sharpened(logs: np.ndarray, labels: np.ndarray, log_t: float) -> np.ndarray:
    """Return q of the labels (n,)."""
    scaled = logs * np.exp(-log_t)
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.clip(scaled[np.arange(len(labels)), labels] / scaled.sum(axis=1), SMALLEST, 1)


def _terms(q: np.ndarray, share: float, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the two terms of P(label), each (n,)."""
    return (1 - share) * q, share * (1 - q) / (classes - 1)


def _best_share(q: np.ndarray, classes: int) -> tuple[float, float]:
    """Return e of the greatest likelihood for q (n,), and the negative mean logarithm of that likelihood."""

    def loss(odds: float) -> float:
        right, wrong = _terms(q, 1 / (1 + np.exp(-odds)), classes)
        return float(-np.log(right + wrong).mean())

    found = minimize_scalar(loss, bounds=LOG_ODDS, method="bounded")
    return float(1 / (1 + np.exp(-found.x))), float(found.fun)
