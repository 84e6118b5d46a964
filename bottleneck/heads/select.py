"""Choosing C: the grid, the scores of cross-validation, and the rules.

Shapes: G values of C, F folds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bottleneck.errors import FitError

AUTO_C = tuple(float(C) for C in np.logspace(-6, 0, 13))


@dataclass(frozen=True)
class Scores:
    """What each C did on held-out samples.

    C : (G,) ascending; score : (G, F), higher is better, NaN for folds without samples; loss : (G,) mean log
    loss (of a regression, the mean squared error); name : what `score` is, "accuracy", "r2" …
    """

    C: np.ndarray
    score: np.ndarray
    loss: np.ndarray
    name: str = "accuracy"

    @property
    def mean(self) -> np.ndarray:
        """(G,) mean over the folds."""
        return np.nanmean(self.score, axis=1)

    def choose(self, one_standard_error: bool = False) -> int:
        """Place of the chosen C: the best mean score, ties by lower loss; or the smallest C as good as it.

        one_standard_error : take the smallest C (the simplest head) whose mean score is within one standard
            error of the best one's over the folds (Breiman et al. 1984, section 3.4.3).
        """
        mean = self.mean
        best = min(np.flatnonzero(mean >= mean.max() - 1e-12), key=lambda i: (self.loss[i], i))
        if not one_standard_error:
            return int(best)
        folds = self.score[best][~np.isnan(self.score[best])]
        error = folds.std(ddof=1) / np.sqrt(len(folds)) if len(folds) > 1 else 0.0
        return int(np.flatnonzero(mean >= mean[best] - error)[0])

    def to_json(self) -> dict[str, Any]:
        """As the artifact keeps it."""
        return {
            "C": self.C.tolist(),
            "score": self.name,
            "mean": self.mean.tolist(),
            "folds": [[None if np.isnan(x) else float(x) for x in row] for row in self.score],
            "loss": self.loss.tolist(),
        }


def grid_of(C: str | float | list[float] | tuple[float, ...]) -> tuple[float, ...]:
    """Ascending values of C of "auto" (13 from 1e-6 to 1, logarithmic), one number or several.

    Raises
    ------
    FitError
        A value is not a positive number.
    """
    if isinstance(C, str):
        if C != "auto":
            raise FitError(f"C is {C!r}; expected auto, a positive number or several.")
        return AUTO_C
    values = tuple(sorted({float(value) for value in np.atleast_1d(C)}))
    if not values or not all(np.isfinite(value) and value > 0 for value in values):
        raise FitError(f"C is {C!r}; expected auto, a positive number or several.")
    return values
