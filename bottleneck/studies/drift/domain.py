"""Measure how well a head distinguishes two sets of images, and compare it with chance.

A ridge classifier between old (0) and new (1) is fitted without each fold and scores it. The area under the
curve (AUC) of these scores is 0.5 where the sets are alike and 1 where each image is told. Its null
distribution is that of labels permuted over the same folds (Lopez-Paz and Oquab 2017). The hat matrix of a
fold does not depend on the labels, so all permutations are columns of one product.

Shapes: n images, d components, P permutations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bottleneck.heads.cross_validation import assign_folds
from bottleneck.heads.metrics import auc, wilson_interval
from bottleneck.samples import Target

FOLDS = 5
FIGURES = ("auc", "auc_ci95", "p_value", "chance")  # in JSON


@dataclass(frozen=True)
class Domain:
    """auc with its 95 % interval; p of as large an AUC by chance; chance : the 95 % quantile of the null.

    scores : (n,) held-out, larger is newer.
    """

    auc: float
    interval: tuple[float, float]
    p: float
    chance: float
    scores: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """Return the figures by their names in JSON."""
        return dict(zip(FIGURES, (self.auc, self.interval, self.p, self.chance), strict=True))


def tell_apart(x: np.ndarray, new: np.ndarray, *, permutations: int, seed: int = 0) -> Domain:
    """Return how well images x (n, d) with new (n,) bool are told from the others."""
    fold = assign_folds(Target("new", "class", new.astype(np.int64), ("old", "new")), FOLDS, seed=seed)
    random = np.random.default_rng(seed)
    labels = np.empty((len(new), permutations + 1))
    labels[:, 0] = new
    for column in range(1, permutations + 1):
        for number in range(FOLDS):  # a fold keeps its share of new images
            here = fold == number
            labels[here, column] = random.permutation(new[here])
    scores = np.empty_like(labels)
    for number in range(FOLDS):
        held = fold == number
        mean, y = x[~held].mean(axis=0), labels[~held]
        a, b = (x[~held] - mean).astype(np.float64), (x[held] - mean).astype(np.float64)
        gram = a.T @ a
        gram[np.diag_indices_from(gram)] += np.trace(gram) / len(gram)  # the mean variance as penalty
        scores[held] = b @ np.linalg.solve(gram, a.T @ (y - y.mean(axis=0)))
    areas = np.array([auc(labels[:, i] == 1, scores[:, i]) for i in range(permutations + 1)])
    measured, null = float(areas[0]), areas[1:]
    p = (1 + int((null >= measured).sum())) / (1 + permutations)
    return Domain(measured, interval(scores[:, 0], new), p, float(np.quantile(null, 0.95)), scores[:, 0])


def interval(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the AUC of scores (n,).

    Wilson's, for as many images as the variance of DeLong et al. (1988) is worth; it has a width at 1 too.
    """
    above, below = np.sort(scores[positive]), np.sort(scores[~positive])
    of_above = _placement(below, above)  # share of old images below each new one
    of_below = 1 - _placement(above, below)
    auc = float(of_above.mean())
    variance = of_above.var(ddof=1) / len(above) + of_below.var(ddof=1) / len(below)
    few = min(len(above), len(below))
    worth = min(auc * (1 - auc) / variance, len(scores)) if variance > 0 and 0 < auc < 1 else few
    return wilson_interval(auc * worth, worth)


def _placement(among: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the share of the sorted `among` below each value, equal ones as half."""
    left, right = (np.searchsorted(among, values, side) for side in ("left", "right"))
    return (left + right) / (2 * len(among))
