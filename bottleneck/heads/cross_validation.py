"""Scores on held-out samples, counted block by block, C by C.

Shapes: n samples, B of a block, C outputs, G values of C, F folds.

Folds of cross-validation: stratified, groups kept together, missing labels left out.

Shapes: n samples, F folds, L labels.

Choosing C: the grid, the scores of cross-validation, and the rules.

Shapes: G values of C, F folds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from bottleneck.errors import FitError
from bottleneck.heads.artifact import apply_link
from bottleneck.heads.metrics import TINY
from bottleneck.heads.solver.problem import NO_FOLD
from bottleneck.samples import Target


def assign_folds(target: Target, count: int, groups: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """(n,) int16, the fold that holds each sample out; NO_FOLD where it has no label.

    Classes are spread evenly over the folds, as far as their samples and groups go: a class with fewer
    samples than folds is in some folds' training sets only. Multi-label targets are stratified by their
    rarest label, regression targets by their quintiles.

    Raises
    ------
    FitError
        Fewer labelled samples, or groups, than folds.
    """
    labelled = np.flatnonzero(target.labelled)
    units = len(labelled) if groups is None else len(np.unique(groups[labelled]))
    if units < count:
        what = "labelled samples" if groups is None else "groups of labelled samples"
        raise FitError(
            f"Target {target.name!r} has {units} {what} to train on, fewer than the {count} folds.",
            f"Use --cv {units}." if units > 1 else "Cross-validation needs at least two.",
        )
    strata = _strata(target.take(labelled))
    fold = np.full(len(target.values), NO_FOLD, np.int16)
    for number, (_, held) in enumerate(
        _splits(strata, count, None if groups is None else groups[labelled], seed)
    ):
        fold[labelled[held]] = number
    return fold


def _splits(strata: np.ndarray, count: int, groups: np.ndarray | None, seed: int):
    """Index pairs of every fold; plain folds where no stratum is large enough to be spread."""
    spread = np.bincount(strata).max() >= count
    if groups is None:
        kind = StratifiedKFold if spread else KFold
        splitter = kind(count, shuffle=True, random_state=seed)
    elif spread:
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    else:
        splitter = GroupKFold(count)
    with warnings.catch_warnings():  # "the least populated class has only …": it is named by `select`
        warnings.simplefilter("ignore", UserWarning)
        return list(splitter.split(strata, strata, groups))


def _strata(target: Target) -> np.ndarray:
    """(n,) int, which samples are alike for stratification."""
    values = target.values
    if target.kind == "regression":
        edges = np.quantile(values, (0.2, 0.4, 0.6, 0.8))
        return np.unique(np.searchsorted(edges, values), return_inverse=True)[1]
    if target.kind == "multilabel":
        counts = values.sum(axis=0, dtype=np.int64)
        rarity = np.where(values == 1, np.where(counts > 0, counts, 1), np.iinfo(np.int64).max)
        rarest = np.where(values.any(axis=1), rarity.argmin(axis=1), values.shape[1])
        return np.unique(rarest, return_inverse=True)[1]
    return np.unique(values, return_inverse=True)[1]


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
