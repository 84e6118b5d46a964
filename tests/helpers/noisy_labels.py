"""Labels of which a part is wrong, with held-out probabilities, for the tests of `audit`."""

import numpy as np


def drawn(n=600, classes=4, flipped=0.1, spread=1.0, seed=0):
    """Labels of which a part is wrong, and probabilities as a fair model would give: (labels, p, wrong)."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, classes, n)
    logits = draw.normal(size=(n, classes)) * spread
    logits[np.arange(n), truth] += 4
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wrong = draw.random(n) < flipped
    labels = np.where(wrong, (truth + draw.integers(1, classes, n)) % classes, truth)
    return labels, p, wrong
