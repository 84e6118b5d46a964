"""One temperature for all logits, so that held-out probabilities mean what they say (Guo et al. 2017).

Shapes: n samples, C classes or labels.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar

from bottleneck.heads.artifact import apply_link
from bottleneck.heads.metrics import TINY
from bottleneck.heads.rows import block_size

BLOCK_BYTES = 1 << 20  # of logits; their probabilities take ten times as much on the way
WIDEST = np.log(1e3)  # temperatures between 1/1000 and 1000 of the logits' own size


def link_loss(values: np.ndarray, logits: np.ndarray, link: str, temperature: float = 1.0) -> float:
    """Mean log loss in nats: values (n,) codes, or (n, L) of 0 and 1 under "sigmoid"; logits (n, C).

    Taken block by block: millions of probabilities in float64 would be the most that a fit needs.
    """
    size, total = block_size(logits.shape[1], BLOCK_BYTES), 0.0
    for start in range(0, len(values), size):
        answers, p = values[start : start + size], apply_link(logits[start : start + size], link, temperature)
        true = np.where(answers == 1, p, 1 - p) if link == "sigmoid" else p[np.arange(len(p)), answers]
        total -= np.log(np.maximum(true, TINY)).sum() / (true.size // len(true))
    return float(total / len(values))


def fit_temperature(values: np.ndarray, logits: np.ndarray, link: str) -> float:
    """The temperature at which `link_loss` of held-out logits is least; 1 where there are none.

    The loss is convex in 1/T (a log-sum-exp of linear functions of it), so that one search finds it. It is
    bounded beside the logits' size, which at a small C is itself small.
    """
    size = float(np.abs(logits).mean()) if len(values) else 0.0
    if size == 0:
        return 1.0

    def loss(log_temperature: float) -> float:
        return link_loss(values, logits, link, float(np.exp(log_temperature)))

    middle = float(np.log(size))
    bounds = (middle - WIDEST, middle + WIDEST)
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0
