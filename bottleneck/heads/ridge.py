"""Ridge heads for classes and numbers: a sweep over C in closed form, and scikit-learn estimators.

Shapes: n samples, V rows (views) of a sample, B rows of a block, D features, K outputs, G values of C.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from bottleneck.heads.config import DECADE, DEFAULT, DEFAULT_MEMORY, SweepConfig, beyond, grid_of, is_auto
from bottleneck.heads.cross_validation import LOSS_GAIN, HeldOutLogits, cross_validate
from bottleneck.heads.estimator import LinearHead, weights_of
from bottleneck.heads.head_fit import HeadFit
from bottleneck.heads.row_blocks import (
    Standardisation,
    as_rows,
    is_double,
    is_reader,
    linear_outputs,
    standardisation,
    without_torch,
)
from bottleneck.heads.solver.design import Design, build_design, streamed_like
from bottleneck.heads.solver.problem import NO_FOLD, TargetProblem, class_factors, weights_by_code
from bottleneck.heads.solver.ridge_path import Moments, RidgePath, moments_by_fold
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import UNLABELLED, ArrayRows, RowReader, Target
from bottleneck.threads import WorkerPool


def ridge_sweep(
    rows: RowReader,
    problems: Sequence[TargetProblem],
    C: str | float | Iterable[float],
    config: SweepConfig = DEFAULT,
    plain: RowReader | None = None,
    weight: np.ndarray | None = None,
    reporter: Reporter = SILENT,
) -> list[HeadFit]:
    """Fit a ridge head for each problem; arguments and result as of `logistic.sweep`, with λ = 1/C.

    Classes and labels have one output each, whose answers are −1 and 1; a regression has its values.
    """
    with WorkerPool(config.device) as pool:
        run = _Rows(rows, len(problems[0].fold), config, pool, plain, weight=weight)
        heads = []
        with reporter.step("Fitting ridge heads", total=len(problems), unit="targets") as advance:
            for problem in problems:
                heads.append(_fit(run, problem, C, config.one_standard_error))
                advance(1)
        return heads


class _Rows:
    """The rows of a fit.

    design : the rows that heads are fitted on; sample (n · V,), the sample of each, order (n · V,), its row.
    scored : the rows that heads are scored on, the same without views; scored_sample, the sample of each.
    """

    def __init__(
        self,
        rows: RowReader,
        n: int,
        config: SweepConfig,
        pool: WorkerPool,
        plain: RowReader | None = None,
        weights: np.ndarray | None = None,
        weight: np.ndarray | None = None,
    ) -> None:
        self.pool, self.views = pool, rows.shape[0] // n
        self.standard = Standardisation.identity(rows.shape[1])
        if config.standardize:
            self.standard = standardisation(rows, pool, weights, config.dtype)
        self.standard = replace(self.standard, weight=weight)
        self.design, order = build_design(rows, self.standard, pool, config.memory, dtype=config.dtype)
        self.sample = order // self.views
        self.scored: Design = self.design
        self.scored_sample = self.sample
        if plain is not None:
            self.scored, self.scored_sample = streamed_like(self.design, plain), np.arange(n)

    def moments(self, answers: np.ndarray, weights: np.ndarray, fold: np.ndarray) -> list[Moments]:
        """Return the moments by fold of samples (n, …)."""
        sample = self.sample
        weights = weights[sample] / self.views
        return moments_by_fold(self.design, self.pool, answers[sample], weights, fold[sample])

    def head(self, path: RidgePath, C: float) -> tuple[np.ndarray, np.ndarray, Standardisation]:
        """Return coef (K, D) and intercept (K,) on standardised features at C, and the standardisation."""
        coef, intercept = path.at(C)
        return self.design.from_blocks(coef), intercept, self.standard

    def held_out(self, fold: np.ndarray) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        """Yield (samples (B,), their fold, rows (B, D)) block by block, for each fold in a block."""
        for start, stop in self.scored.blocks():
            x = self.scored.read(start, stop).numpy(force=True)
            samples = self.scored_sample[start:stop]
            for number in np.unique(fold[samples]):
                if number != NO_FOLD:
                    members = fold[samples] == number
                    yield samples[members], int(number), x[members]

    def scoring(self, path: RidgePath, C: float) -> tuple[np.ndarray, np.ndarray]:
        """Return coef (K, D) and intercept (K,) at C, float32, as they multiply the rows of `held_out`."""
        coef, intercept = path.at(C)
        if self.scored is not self.design:
            coef = self.design.from_blocks(coef)
        return coef.astype(np.float32), intercept.astype(np.float32)


def held_out_values(
    rows: RowReader, problem: TargetProblem, Cs: Sequence[float], config: SweepConfig
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield the index of C, samples (B,) and their outputs (B, K) by heads that were fitted without them."""
    with WorkerPool(config.device) as pool:
        run = _Rows(rows, len(problem.fold), config, pool)
        _, paths = _paths(run, problem)
        yield from _held_out(run, problem, paths, Cs, range(len(Cs)))


def _paths(run: _Rows, problem: TargetProblem) -> tuple[Moments, list[RidgePath]]:
    """Return the moments of all rows, and the path of each fold."""
    moments = run.moments(*answers_of(problem), problem.fold)
    whole = Moments.zeros(len(moments[0].x), len(moments[0].y))
    for part in moments:
        whole.add(part)
    return whole, [RidgePath.of(whole.without(part)) for part in moments[:-1]]


def _held_out(
    run: _Rows,
    problem: TargetProblem,
    paths: Sequence[RidgePath],
    Cs: Sequence[float],
    indices: Sequence[int],
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    for samples, number, x in run.held_out(problem.fold):
        for index in indices:
            coef, intercept = run.scoring(paths[number], Cs[index])
            yield index, samples, x @ coef.T + intercept


def _fit(
    run: _Rows, problem: TargetProblem, strength: str | float | Iterable[float], one_standard_error: bool
) -> HeadFit:
    """Fit one problem: score each C on each fold, then fit all samples at the chosen C."""
    Cs = list(grid_of(strength))
    whole, paths = _paths(run, problem)

    def held_out(wanted: Mapping[int, Sequence[int]]) -> HeldOutLogits:
        return ((0, *found) for found in _held_out(run, problem, paths, Cs, wanted[0]))

    further = (lambda more: None) if is_auto(strength) else None  # a path has the solutions at all C
    (result,) = cross_validate([problem], Cs, held_out, one_standard_error, further)
    C = Cs[result.chosen]
    head = run.head(RidgePath.of(whole), C)
    return HeadFit.linear("ridge", problem, head, C, result, grows=is_auto(strength))


def answers_of(problem: TargetProblem) -> tuple[np.ndarray, np.ndarray]:
    """Return answers (n, K) and weights (n,), both float64; the weight is 0 where there is no label."""
    target, labelled = problem.target, problem.target.labelled
    weights = np.ones(len(labelled)) if problem.sample_weight is None else problem.sample_weight
    weights = np.where(labelled, weights, 0.0)
    if target.kind == "regression":
        return np.where(labelled, target.values, 0.0)[:, None], weights
    if target.kind == "multilabel":
        return np.where(target.values == 1, 1.0, -1.0), weights
    codes = np.where(target.values == UNLABELLED, 0, target.values)
    factor = class_factors(problem.class_weight, codes, weights > 0)
    return np.where(codes[:, None] == np.arange(problem.outputs), 1.0, -1.0), weights * factor[codes]


def _solve(
    head: RidgeHead | RidgeRegressionHead, rows: RowReader, answers: np.ndarray, weights: np.ndarray
) -> tuple[float, tuple[np.ndarray, np.ndarray, Standardisation]]:
    """Return the C of an estimator, by `RidgePath.gcv` if it is "auto", and its head as of `_Rows.head`."""
    dtype = np.float64 if is_double(rows) else np.float32
    config = SweepConfig(memory=head.memory, standardize=head.standardize, dtype=dtype)
    with WorkerPool() as pool:
        run = _Rows(rows, len(answers), config, pool, weights=weights)
        (moments,) = run.moments(answers, weights, np.full(len(answers), NO_FOLD))
        path = RidgePath.of(moments)
        Cs = grid_of(head.C)
        C = min(Cs, key=path.gcv) if len(Cs) > 1 else Cs[0]
        while is_auto(head.C) and (more := _beyond(path, Cs, C)):
            Cs = tuple(sorted({*Cs, *more}))
            C = min(Cs, key=path.gcv)
        return C, run.head(path, C)


def _beyond(path: RidgePath, Cs: tuple[float, ...], best: float) -> tuple[float, ...]:
    """Return the values to add beyond the end of `Cs` that is best, if its error still falls there."""
    at = Cs.index(best)
    inner = Cs[min(max(at, DECADE), len(Cs) - 1 - DECADE)]
    return beyond(Cs, at) if path.gcv(best) < (1 - LOSS_GAIN) * path.gcv(inner) else ()


class RidgeHead(LinearHead):
    """Ridge regression on ±1 for each class, on standardised features: `RidgeClassifier` at alpha = 1/C.

    Parameters
    ----------
    C : float or "auto", default=1.0
        Inverse strength of the penalty. "auto" takes the one of `AUTO_C` with the least error by generalised
        cross-validation, and goes on beyond an end that is the best.
    class_weight : None, "balanced" or dict of class to weight, default=None
    standardize : bool, default=True
        False penalises raw features.
    memory : int, default=4 GiB
        Bytes for features and work. Features that do not fit are read in blocks.

    Attributes
    ----------
    C_ : float
        The C that was used.
    coef_, intercept_, mean_, scale_, classes_, n_features_in_ : as of `LogisticHead`

    Examples
    --------
    >>> from bottleneck import RidgeHead
    >>> head = RidgeHead(C="auto").fit([[0.0], [1.0], [2.0], [3.0]], ["a", "a", "b", "b"])
    >>> head.predict([[0.5], [2.5]]).tolist()
    ['a', 'b']
    """

    kind = "ridge"
    _margin = 0.5

    def __init__(
        self,
        C: float | str = 1.0,
        class_weight: dict | str | None = None,
        standardize: bool = True,
        memory: int = DEFAULT_MEMORY,
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.standardize = standardize
        self.memory = memory

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> RidgeHead:
        """Fit. sample_weight : (n_samples,), factors of the samples' squares; 0 leaves a sample out."""
        rows, codes = self._samples(X, y)
        problem = TargetProblem(
            Target("y", "class", codes, tuple(map(str, self.classes_))),
            np.full(len(codes), NO_FOLD, np.int16),
            weights_by_code(self.class_weight, self.classes_),
            weights_of(sample_weight, len(codes)),
        )
        self.C_, head = _solve(self, rows, *answers_of(problem))
        self._set_linear_fit(HeadFit.linear("ridge", problem, head, self.C_))
        return self


class RidgeRegressionHead(RegressorMixin, BaseEstimator):
    """Ridge regression of numbers, on standardised features: scikit-learn's `Ridge` at alpha = 1/C.

    Parameters
    ----------
    C, standardize, memory : as of `RidgeHead`

    Attributes
    ----------
    C_ : float
        The C that was used.
    coef_ : ndarray of shape (n_features,), or (n_targets, n_features) if y has two axes
        On raw features, float64.
    intercept_ : float or ndarray of shape (n_targets,)
    mean_, scale_, n_features_in_ : as of `LogisticHead`

    Examples
    --------
    >>> from bottleneck import RidgeRegressionHead
    >>> head = RidgeRegressionHead(C=1e6).fit([[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0])
    >>> head.predict([[3.0]]).round(3).tolist()
    [7.0]
    """

    def __init__(self, C: float | str = 1.0, standardize: bool = True, memory: int = DEFAULT_MEMORY) -> None:
        self.C = C
        self.standardize = standardize
        self.memory = memory

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> RidgeRegressionHead:
        """Fit. X : (n_samples, n_features), array, tensor or row reader. y : (n_samples[, n_targets])."""
        if is_reader(X):
            rows, values = as_rows(X), np.asarray(y, np.float64)
            self.n_features_in_ = rows.shape[1]
        else:
            X, values = validate_data(
                self, without_torch(X), y, dtype=(np.float64, np.float32), multi_output=True, y_numeric=True
            )
            rows = ArrayRows(X)
        answers = values.astype(np.float64).reshape(len(values), -1)
        self.C_, (coef, intercept, standard) = _solve(
            self, rows, answers, weights_of(sample_weight, len(answers))
        )
        coef, intercept = standard.fold(coef, intercept)
        self.mean_, self.scale_ = standard.mean, standard.scale
        single = values.ndim == 1
        self.coef_: np.ndarray = coef[0] if single else coef
        self.intercept_: np.ndarray | float = float(intercept[0]) if single else intercept
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return values of shape (n_samples,) or (n_samples, n_targets)."""
        check_is_fitted(self, "coef_")
        if is_reader(X):
            rows = as_rows(X)
        else:
            X = validate_data(self, without_torch(X), reset=False, dtype=(np.float64, np.float32))
            rows = ArrayRows(X)
        outputs = linear_outputs(rows, np.atleast_2d(self.coef_), np.atleast_1d(self.intercept_))
        return outputs[:, 0] if self.coef_.ndim == 1 else outputs
