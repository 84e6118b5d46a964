"""Cross-validation: folds, the scores of held-out samples, and the choice of C.

`cross_validate` is the one driver. A solver or an estimator gives it the logits of held-out samples.

Shapes: n samples, B samples of a block, K outputs, G values of C, F folds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bottleneck.errors import FitError, counted
from bottleneck.heads.artifact import apply_link
from bottleneck.heads.config import DECADE, beyond
from bottleneck.heads.metrics import TINY
from bottleneck.heads.solver.problem import NO_FOLD, TargetProblem
from bottleneck.samples import Target

SCORE_GAIN, LOSS_GAIN = 1e-6, 1e-2  # of a decade of C (the loss relative), less of which is no change


def assign_folds(target: Target, count: int, groups: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """Return (n,) int16, the fold that holds each sample out; NO_FOLD where it has no label.

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
            f"Target {target.name!r} has {units} {what} to train on, fewer than the "
            f"{counted(count, 'fold')}.",
            f"Use --cv {units}." if units > 1 else "Cross-validation needs at least two.",
        )
    strata = _strata(target.take(labelled))
    fold = np.full(len(target.values), NO_FOLD, np.int16)
    if groups is not None:
        fold[labelled] = _folds_of_groups(strata, count, groups[labelled], seed)
    else:
        fold[labelled] = _folds_of_samples(strata, count, seed)
    return fold


def _spreads(strata: np.ndarray, count: int) -> bool:
    """Return whether any stratum has a sample for each fold."""
    return bool(np.bincount(strata).max() >= count)


def _folds_of_samples(strata: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the fold (n,) of each sample. These are the folds of scikit-learn's shuffled StratifiedKFold, or
    of KFold where no stratum has a sample per fold; scikit-learn takes a second of a core to import.

    Strata are dealt to the folds in turn, each from where the last one ended; within a stratum, the order is
    random.
    """
    generator = np.random.RandomState(seed)
    fold = np.empty(len(strata), np.int16)
    if not _spreads(strata, count):
        fold[generator.permutation(len(strata))] = np.sort(np.arange(len(strata)) % count)
        return fold
    _, first = np.unique(strata, return_index=True)
    dealt = 0
    for stratum in strata[np.sort(first)]:
        members = np.flatnonzero(strata == stratum)
        numbers = np.sort((dealt + np.arange(len(members))) % count)
        generator.shuffle(numbers)
        fold[members] = numbers
        dealt += len(members)
    return fold


def _folds_of_groups(strata: np.ndarray, count: int, groups: np.ndarray, seed: int) -> np.ndarray:
    """Return the fold (n,) of each sample; a group (n,) is in one fold, strata are spread where they can."""
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    splitter: Any = GroupKFold(count)
    if _spreads(strata, count):
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    fold = np.empty(len(strata), np.int16)
    with warnings.catch_warnings():  # "the least populated class has only …": a note of `fit_heads` names it
        warnings.simplefilter("ignore", UserWarning)
        for number, (_, held) in enumerate(splitter.split(strata, strata, groups)):
            fold[held] = number
    return fold


def _strata(target: Target) -> np.ndarray:
    """Return (n,) int, the stratum of each sample."""
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


@dataclass(frozen=True)
class Scores:
    """Scores of each C on held-out samples.

    C : (G,) ascending; score : (G, F), higher is better, NaN for folds without samples; loss : (G,) mean log
    loss (of a regression, the mean squared error); name : what `score` is, "accuracy", "r2" …; added : values
    of C by which the grid was extended.
    """

    C: np.ndarray
    score: np.ndarray
    loss: np.ndarray
    name: str = "accuracy"
    added: tuple[float, ...] = ()

    @property
    def mean(self) -> np.ndarray:
        """(G,) mean over the folds."""
        return np.nanmean(self.score, axis=1)

    def choose(self, one_standard_error: bool = False) -> int:
        """Return the index of the chosen C: the best mean score, ties by lower loss.

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

    def outward(self) -> tuple[float, ...]:
        """Return the values of C to add: a decade beyond the end that is best, while the score changes there.

        Empty where the best C is inside the grid, where the end is no better than the value a decade before
        it, where no score is higher, and at the bounds of `config.beyond`.
        """
        best, mean = self.choose(), self.mean
        inner = min(max(best, DECADE), len(mean) - 1 - DECADE) if len(mean) > DECADE else best
        gained = mean[best] - mean[inner] > SCORE_GAIN or self.loss[best] < (1 - LOSS_GAIN) * self.loss[inner]
        return beyond(self.C.tolist(), best) if gained and mean[best] < 1 else ()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that a head file contains."""
        return {
            "C": self.C.tolist(),
            "score": self.name,
            "mean": self.mean.tolist(),
            "folds": [[None if np.isnan(x) else float(x) for x in row] for row in self.score],
            "loss": self.loss.tolist(),
            "added": list(self.added),
        }


Judge = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Answers (B, …) and outputs (B, K) → scores (B,), higher is better, and losses (B,)."""


class HeldOutScores:
    """Add up scores and losses of one target's held-out samples, for each C and fold.

    Classes and labels are scored by accuracy and log loss, regressions by R² and squared error.
    """

    def __init__(self, problem: TargetProblem, folds: int) -> None:
        self._values, self._fold, self._folds = problem.target.values, problem.fold, folds
        self._name = "r2" if problem.target.kind == "regression" else "accuracy"
        self._judge = judge_of(problem)
        self._sums: dict[int, np.ndarray] = {}  # by index of C (3, folds), of samples, scores and losses

    def add(self, index: int, samples: np.ndarray, outputs: np.ndarray) -> None:
        """Add outputs (B, K) for `samples` (B,) at C number `index`, by heads fitted without the samples."""
        held = self._fold[samples] != NO_FOLD
        samples, outputs = samples[held], outputs[held]
        numbers = (np.ones(len(samples)), *self._judge(self._values[samples], outputs))
        for total, values in zip(
            self._sums.setdefault(index, np.zeros((3, self._folds))), numbers, strict=True
        ):
            total += np.bincount(self._fold[samples], weights=values, minlength=self._folds)

    def scores(self, Cs: Sequence[float], given: int) -> tuple[Scores, list[int]]:
        """Return the mean scores in ascending order of C, and the index of each in `Cs`.

        One sample or more was held out. The first `given` values of `Cs` are the grid that was asked for.
        """
        order = sorted(self._sums, key=lambda index: Cs[index])
        count, score, loss = np.stack([self._sums[index] for index in order], axis=1)  # (G, F) each
        mean = np.divide(score, count, out=np.full_like(score, np.nan), where=count > 0)
        return Scores(
            np.array([Cs[index] for index in order]),
            mean,
            loss.sum(axis=1) / count.sum(axis=1),
            self._name,
            tuple(Cs[index] for index in order if index >= given),
        ), order


def judge_of(problem: TargetProblem) -> Judge:
    """Return the function that scores single samples; the variance of a regression is that of `problem`."""
    if problem.target.kind == "multilabel":
        return _judge_labels
    if problem.target.kind == "class":
        return lambda codes, outputs: _judge_classes(codes, outputs, problem.link)
    variance = max(float(np.nanvar(problem.target.values)), TINY)
    return lambda values, outputs: _judge_values(values, outputs, variance)


def _judge_classes(codes: np.ndarray, outputs: np.ndarray, link: str) -> tuple[np.ndarray, np.ndarray]:
    p = apply_link(outputs, link)[np.arange(len(codes)), codes]
    return outputs.argmax(axis=1) == codes, -np.log(np.maximum(p, TINY))


def _judge_labels(labels: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    z = outputs.astype(np.float64)
    return ((z > 0) == labels).mean(axis=1), np.logaddexp(0, np.where(labels == 1, -z, z)).mean(axis=1)


def _judge_values(values: np.ndarray, outputs: np.ndarray, variance: float) -> tuple[np.ndarray, np.ndarray]:
    square = (values - outputs[:, 0]) ** 2
    return 1 - square / variance, square


HeldOutLogits = Iterable[tuple[int, int, np.ndarray, np.ndarray]]
"""Of blocks: the problem's index, the index of C, samples (B,), and logits (B, K) of heads without them."""


class CrossValidation(NamedTuple):
    """Result for one problem. chosen : index of C. scores, out_of_fold : as of `HeadFit`."""

    chosen: int
    scores: Scores | None
    out_of_fold: np.ndarray | None


def cross_validate(
    problems: Sequence[TargetProblem],
    Cs: list[float],
    held_out: Callable[[Mapping[int, Sequence[int]]], HeldOutLogits],
    one_standard_error: bool = False,
    solve: Callable[[Sequence[float]], None] | None = None,
) -> list[CrossValidation]:
    """Score each C on the held-out samples of each problem, choose one, and collect its logits.

    Parameters
    ----------
    Cs : ascending. The last one is chosen for a problem without folds. The values by which the grid is
        extended are appended.
    held_out : yields the logits for a dict of problem → indices of C. It is called with all values of C, and,
        if there are several, once more with the chosen ones: the logits of all would need too much memory.
    one_standard_error : see `Scores.choose`.
    solve : solves further values of C, so that `held_out` takes their indices. With it the grid is extended
        where the best C of a problem is at an end (`Scores.outward`); without it the grid is fixed.
    """
    folds = 1 + max(int(problem.fold.max(initial=NO_FOLD)) for problem in problems)
    given = len(Cs)
    tallies = {
        i: HeldOutScores(problem, folds)
        for i, problem in enumerate(problems)
        if (problem.fold != NO_FOLD).any()
    }
    if not tallies:
        return [CrossValidation(given - 1, None, None)] * len(problems)
    logits = {i: np.full((len(problems[i].fold), problems[i].outputs), np.nan, np.float32) for i in tallies}
    wanted: dict[int, Sequence[int]] = dict.fromkeys(tallies, range(given))
    scores: dict[int, Scores] = {}
    orders: dict[int, list[int]] = {}
    while wanted:
        for i, index, samples, outputs in held_out(wanted):
            tallies[i].add(index, samples, outputs)
            if given == 1:
                logits[i][samples] = outputs
        for i in wanted:
            scores[i], orders[i] = tallies[i].scores(Cs, given)
        wanted = {} if solve is None else _extended({i: scores[i] for i in wanted}, Cs, solve)
    chosen = {i: orders[i][score.choose(one_standard_error)] for i, score in scores.items()}
    if given > 1:
        for i, _, samples, outputs in held_out({i: [index] for i, index in chosen.items()}):
            logits[i][samples] = outputs
    for i, values in logits.items():
        values[problems[i].fold == NO_FOLD] = np.nan
    return [
        CrossValidation(chosen.get(i, given - 1), scores.get(i), logits.get(i)) for i in range(len(problems))
    ]


def _extended(
    scores: Mapping[int, Scores], Cs: list[float], solve: Callable[[Sequence[float]], None]
) -> dict[int, Sequence[int]]:
    """Solve the values of C that problems need beyond the grid, append them to `Cs`, return their indices."""
    needed = {i: more for i, score in scores.items() if (more := score.outward())}
    new = sorted({C for more in needed.values() for C in more} - set(Cs))
    if new:
        solve(new)
        Cs += new
    return {i: [Cs.index(C) for C in more] for i, more in needed.items()}
