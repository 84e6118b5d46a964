"""One temperature for all logits, so that held-out probabilities mean what they say (Guo et al. 2017).

Shapes: n samples, C classes or labels.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar

from bottleneck.heads.artifact import apply_link
from bottleneck.heads.metrics import TINY, log_loss

WIDEST = np.log(1e3)  # temperatures between 1/1000 and 1000 of the logits' own size


def link_loss(values: np.ndarray, logits: np.ndarray, link: str, temperature: float = 1.0) -> float:
    """Mean log loss in nats: values (n,) codes, or (n, L) of 0 and 1 under "sigmoid"; logits (n, C)."""
    p = apply_link(logits, link, temperature)
    if link != "sigmoid":
        return log_loss(values, p)
    return float(-np.log(np.maximum(np.where(values == 1, p, 1 - p), TINY)).mean())


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
