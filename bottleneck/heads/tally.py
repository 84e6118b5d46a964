"""Scores on held-out samples, counted block by block, C by C.

Shapes: n samples, B of a block, C outputs, G values of C, F folds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bottleneck.heads.artifact import apply_link
from bottleneck.heads.metrics import TINY
from bottleneck.heads.select import Scores
from bottleneck.heads.tasks import NO_FOLD
from bottleneck.samples import Target

Judge = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Tally:
    """Counts of one target.

    Parameters
    ----------
    values : (n,) or (n, L), true answers, as of `Target`.
    fold : (n,) int, NO_FOLD for samples that are not held out.
    judge : answers and outputs (B, C) → scores (B,), higher is better, and losses (B,).
    name : what the score is.
    """

    def __init__(self, values: np.ndarray, fold: np.ndarray, folds: int, judge: Judge, name: str) -> None:
        self.values, self.fold, self.folds, self.judge, self.name = values, fold, folds, judge, name
        self._counts: list[np.ndarray] = []

    def begin(self) -> None:
        """The next C."""
        self._counts.append(np.zeros((3, self.folds)))  # samples, scores, losses

    def add(self, samples: np.ndarray, outputs: np.ndarray, place: int = -1) -> None:
        """Outputs (B, C) for `samples` (B,), by heads that did not see them; place : of the C."""
        held = self.fold[samples] != NO_FOLD
        samples, outputs = samples[held], outputs[held]
        if not len(samples):
            return
        sums = (np.ones(len(samples)), *self.judge(self.values[samples], outputs))
        for count, numbers in zip(self._counts[place], sums, strict=True):
            count += np.bincount(self.fold[samples], weights=numbers, minlength=self.folds)

    def scores(self, Cs: Sequence[float]) -> Scores:
        """All values of C together."""
        counts = np.array(self._counts)  # (G, 3, F)
        with np.errstate(invalid="ignore", divide="ignore"):
            score = counts[:, 1] / counts[:, 0]
        return Scores(
            np.array(Cs), score, counts[:, 2].sum(axis=1) / counts[:, 0].sum(axis=1), name=self.name
        )


def tally_of(target: Target, fold: np.ndarray, folds: int, link: str) -> Tally:
    """The tally that suits a target: accuracy and log loss; of a regression, R² and the squared error."""
    if target.kind == "regression":
        spread = max(float(np.nanvar(target.values)), TINY)

        def judge(values: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            square = (values - outputs[:, 0]) ** 2
            return 1 - square / spread, square

        return Tally(target.values, fold, folds, judge, "r2")
    if target.kind == "multilabel":
        return Tally(target.values, fold, folds, _judge_labels, "accuracy")

    def judge_class(values: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = apply_link(outputs, link)[np.arange(len(values)), values]
        return outputs.argmax(axis=1) == values, -np.log(np.maximum(p, TINY))

    return Tally(target.values, fold, folds, judge_class, "accuracy")


def _judge_labels(values: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    z = outputs.astype(np.float64)
    return ((z > 0) == values).mean(axis=1), np.logaddexp(0, np.where(values == 1, -z, z)).mean(axis=1)
